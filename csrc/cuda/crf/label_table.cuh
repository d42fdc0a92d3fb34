// What is known of the label maps of dense_crf_labels. Macro: INPUT_TYPE.
#pragma once
#include "../common/camguide.cuh"

typedef INPUT_TYPE T;

constexpr int UNKNOWN = 255;

// What a label map says about an image: the labels in it, ascending; `number` of each among them; -U where a label is given, of
// the others there, and where none is.
struct Labels {
  int count, number[UNKNOWN], label[UNKNOWN];
  float right, wrong, none;
};

template <class Label>
__device__ __forceinline__ int known(Label label, int L) {
  return (long long)label >= 0 && (long long)label < L ? (int)label : UNKNOWN;
}
