// How the lattice of a term lies over its features, worked out once a call by one thread.
#include "permutohedral.cuh"

// Term `at`, of positions alone or with colours; range: the least and greatest of these, [2, 3].
extern "C" __global__ void place_term(const float* __restrict__ range, long long* __restrict__ terms, int at, int colours,
                                      int H, int W, double sx, double sy, double sr, double sg, double sb, double weight) {
  Term& term = reinterpret_cast<Term*>(terms)[at];
  const double sigma[5] = {sx, sy, sr, sg, sb};
  float low[5] = {}, high[5];
  for (int i = 0; i < 5; ++i) {
    term.sigma[i] = (float)sigma[i];
    if (i >= 2) low[i] = range[i - 2] / term.sigma[i];
    high[i] = (i == 0 ? (float)(W - 1) : i == 1 ? (float)(H - 1) : range[i + 1]) / term.sigma[i];
  }
  term.weight = weight;
  if (colours) {
    embed<6>(low, high, term);
  } else {
    const float high_2[2] = {high[0], high[1]}, low_2[2] = {};
    embed<3>(low_2, high_2, term);
  }
}
