// slic: local k-means in (position, Lab), the labels of camguide_fast/reference/slic.py bit for bit.
//
//   d(pixel, centre) = (dy^2 + dx^2) + w * ((dL^2 + da^2) + db^2),   inf outside of the centre's window
//
// in fp32, each operation rounded once (lab.cuh keeps the compiler from contracting them); ties go to the lower index; sums of a
// centre are integers, so that the order in which atomics arrive does not matter.
//
//   image_range, find_colours   slic_picture.cuh: colours as integers of 2^-16 Lab units
//   update_centres, assign      slic_centres.cuh, slic_assign.cuh: once each for every pass
//   the rest                    connectivity.cuh: components, small ones given away, labels without gaps
//
// Compulsory bytes of 512 x 512 uint8: 0.8 MB read, 1 MB written. Colours and labels are read again in each pass, 4 MB, from the
// cache as far as they fit there. Nothing waits for the host.
//
// Macro: IMAGE_TYPE.
#include "common/camguide.cuh"
#include "superpixels/lab.cuh"
#include "superpixels/slic_picture.cuh"
#include "superpixels/slic_centres.cuh"
#include "superpixels/slic_assign.cuh"
#include "superpixels/connectivity.cuh"
