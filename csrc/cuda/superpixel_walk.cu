// superpixel_graph, superpixel_random_walk: Eq. 13-16 on the 4-neighbour graph of superpixels, as sorted neighbour lists (CSR).
//
//   mu_s = mean Lab of superpixel s,   w_st = exp(-|mu_s - mu_t| / (2 sigma^2)),   P = w / row sum,   u <- P u
//
// A block has a superpixel and looks at the pixels within its bounds, row by row, so that every sum has its order whatever the
// labels are; sums over pixels are fp64. It is meant for superpixels that lie together: labels strewn over the image are served
// as well, but each block then looks at all of it.
//
// Compulsory bytes of the walk at K maps: 2 K H W elements and the labels, those of the graph: the image, the labels, and 8 bytes
// for each of the 4 H W edges that labels may have, which are cleared.
//
// Macros: IMAGE_TYPE for the graph; TARGET_TYPE and TRANSITION_TYPE for the walk.
#include "common/camguide.cuh"
#include "superpixels/pixels.cuh"

#ifdef IMAGE_TYPE
#include "superpixels/lab.cuh"
#include "superpixels/edges.cuh"
#include "superpixels/graph.cuh"
#else
#include "superpixels/steps.cuh"
#endif
