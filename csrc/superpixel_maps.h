// Maps summed over superpixels, and spread over them again.
#pragma once

#include "label_runs.h"
#include "pixels.h"
#include "simd.h"

#include <algorithm>
#include <atomic>
#include <type_traits>

namespace camguide {
namespace {

constexpr int64_t kMaps = 8;  // at most, summed and spread together: as many independent chains of additions

void find_runs(const int32_t* segments, int64_t num_segments, Runs& runs) {
  std::atomic<bool> outside = false;
  torch::stable::parallel_for(0, runs.height, 64, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      const int32_t* const row = segments + y * runs.width;
      runs.find(row, y);
      for (int64_t id = runs.first(y); id < runs.end(y); ++id) {
        const int32_t label = row[runs.start(id)];
        if (label < 0 || label >= num_segments) outside = true;
      }
    }
  });
  STD_TORCH_CHECK(!outside, "segments must be in [0, ", num_segments, ") (num_segments)");
}

// Adds rows [top, bottom) of maps [maps, H, W] to the sums over each superpixel, [N, maps].
template <int64_t maps, class T>
CAMGUIDE_INLINE void sum_maps(
    const T* values, const int32_t* segments, const Runs& runs, int64_t top, int64_t bottom, double* sums) {
  const int64_t pixels = runs.height * runs.width;
  for (int64_t y = top; y < bottom; ++y) {
    const T* const row = values + y * runs.width;
    for (int64_t id = runs.first(y); id < runs.end(y); ++id) {
      double* const total = sums + segments[y * runs.width + runs.start(id)] * maps;
      double sum[maps];
      for (int64_t k = 0; k < maps; ++k) sum[k] = total[k];
      for (int64_t x = runs.start(id); x < runs.stop(id); ++x) {
        for (int64_t k = 0; k < maps; ++k) sum[k] += static_cast<Wide<T>>(row[k * pixels + x]);
      }
      for (int64_t k = 0; k < maps; ++k) total[k] = sum[k];
    }
  }
}

// Gives each pixel the value of its superpixel, [N, maps] -> [maps, H, W]. A run is written by whole vectors, past its end
// where there is room; what follows it is written later.
template <int64_t maps, class T>
CAMGUIDE_INLINE void spread_maps(const Wide<T>* u, const int32_t* segments, const Runs& runs, T* out) {
  constexpr int64_t at_once = 32 / sizeof(T);
  const int64_t pixels = runs.height * runs.width;
  for (int64_t y = 0; y < runs.height; ++y, segments += runs.width) {
    for (int64_t id = runs.first(y); id < runs.end(y); ++id) {
      const Wide<T>* const from = u + segments[runs.start(id)] * maps;
      const int64_t begin = y * runs.width + runs.start(id), end = y * runs.width + runs.stop(id);
      for (int64_t k = 0; k < maps; ++k) {
        const T value = static_cast<T>(from[k]);
        T* const map = out + k * pixels;
        int64_t i = begin;
        for (; i < end && i + at_once <= pixels; i += at_once) std::fill_n(map + i, at_once, value);
        for (; i < end; ++i) map[i] = value;
      }
    }
  }
}

// f(first map, number of maps as a constant) until all are done: 8 at a time, then 4, 2, 1.
template <int64_t maps = kMaps, class F>
CAMGUIDE_INLINE void in_groups(int64_t begin, int64_t end, const F& f) {
  for (; begin + maps <= end; begin += maps) f(begin, std::integral_constant<int64_t, maps>());
  if constexpr (maps > 1) in_groups<maps / 2>(begin, end, f);
}

}  // namespace
}  // namespace camguide
