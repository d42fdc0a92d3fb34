// confusion_matrix: table[t][p] += 1 over the pixels whose target t is not `ignore`; see camguide_fast/ops/confusion_matrix.py.
//
// Every thread counts into a table of its own; integer sums do not depend on their order. Label maps are made of runs, so equal
// neighbours are counted together: a chain of increments of one cell would wait for its own stores.
#include "common/camguide.h"
#include "common/parallel.h"

#include <algorithm>
#include <mutex>
#include <tuple>
#include <vector>

namespace camguide {
namespace {

struct Counts {
  int64_t classes, ignore, outside = 0;
  std::vector<int64_t> table;  // [C, C], rows are target

  Counts(int64_t classes, int64_t ignore) : classes(classes), ignore(ignore), table(classes * classes) {}

  void add(int64_t t, int64_t p, int64_t n) {
    if (t == ignore) return;
    if (t < 0 || t >= classes || p < 0 || p >= classes) {
      outside += n;
    } else {
      table[t * classes + p] += n;
    }
  }
};

template <class P, class T>
void count_runs(const P* pred, const T* target, int64_t begin, int64_t end, Counts& counts) {
  for (int64_t i = begin; i < end;) {
    int64_t j = i + 1;
    while (j < end && target[j] == target[i] && pred[j] == pred[i]) ++j;
    counts.add(target[i], pred[i], j - i);
    i = j;
  }
}

std::tuple<Tensor, Tensor> confusion_matrix(const Tensor& pred, const Tensor& target, int64_t classes, int64_t ignore) {
  const Tensor p = torch::stable::contiguous(pred), t = torch::stable::contiguous(target);
  Tensor table = torch::stable::new_zeros(pred, {classes, classes}, ScalarType::Long);
  Tensor outside = torch::stable::new_zeros(pred, {}, ScalarType::Long);
  int64_t* const sum = table.mutable_data_ptr<int64_t>();
  int64_t* const sum_outside = outside.mutable_data_ptr<int64_t>();
  // A thread must have more to count than its table has cells to add up.
  constexpr int64_t block = 1 << 14;
  const int64_t pixels = p.numel(), least = std::max<int64_t>(2, classes * classes / block);
  std::mutex mutex;
  with_labels(p, "pred", [&](auto* p_data) {
    with_labels(t, "target", [&](auto* t_data) {
      share_out((pixels + block - 1) / block, least, [&](Share& blocks) {
        Counts counts(classes, ignore);
        for (int64_t i; blocks.take(i);) {
          count_runs(p_data, t_data, i * block, std::min(pixels, (i + 1) * block), counts);
        }
        const std::lock_guard<std::mutex> lock(mutex);
        for (int64_t i = 0; i < classes * classes; ++i) sum[i] += counts.table[i];
        *sum_outside += counts.outside;
      });
    });
  });
  return {table, outside};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) { m.impl("confusion_matrix", TORCH_BOX(&confusion_matrix)); }

}  // namespace camguide
