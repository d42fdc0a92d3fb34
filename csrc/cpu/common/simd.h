// Wide vectors that compile everywhere and are chosen at run time.
#pragma once

#include <cstdint>

// A function so marked is compiled for AVX-512, AVX2 and the baseline, and the loader picks one: no illegal instruction on
// an older CPU. `flatten` draws everything that it calls into each copy; a call left over would run baseline code.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define CAMGUIDE_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#else
#define CAMGUIDE_MULTIVERSION
#endif
#define CAMGUIDE_INLINE inline __attribute__((always_inline))

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross no boundary but those of inlined functions
#endif

namespace camguide {

// As wide as compilers keep in registers: GCC takes vectors wider than the machine's apart through memory. AVX-512 gains its
// registers and masks from the copy made for it, not from its width.
#if defined(__x86_64__)
constexpr int64_t kVectorBytes = 32;
#else
constexpr int64_t kVectorBytes = 16;
#endif

// Arithmetic works lane by lane.
template <class A>
struct Vector {
  typedef A type __attribute__((vector_size(kVectorBytes)));
  typedef A unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(A))));  // in memory, where it aliases A alone
};
template <class A>
using Vec = typename Vector<A>::type;

template <class A>
constexpr int64_t lanes = kVectorBytes / sizeof(A);

template <class A>
constexpr int64_t round_to_lanes(int64_t n) {
  return (n + lanes<A> - 1) / lanes<A> * lanes<A>;
}

template <class A>
CAMGUIDE_INLINE Vec<A> load(const A* from) {
  return *reinterpret_cast<const typename Vector<A>::unaligned*>(from);
}

template <class A>
CAMGUIDE_INLINE void store(A* to, Vec<A> v) {
  *reinterpret_cast<typename Vector<A>::unaligned*>(to) = v;
}

// As many elements of either type as there are doubles in a vector.
template <class A>
struct Doubles {
  typedef A type __attribute__((vector_size(lanes<double> * sizeof(A)), aligned(alignof(A))));
};

template <class A>
CAMGUIDE_INLINE Vec<double> load_doubles(const A* from) {
  return __builtin_convertvector(*reinterpret_cast<const typename Doubles<A>::type*>(from), Vec<double>);
}

template <class A>
CAMGUIDE_INLINE void store_doubles(A* to, Vec<double> v) {
  *reinterpret_cast<typename Doubles<A>::type*>(to) = __builtin_convertvector(v, typename Doubles<A>::type);
}

}  // namespace camguide
