// CUDA's language on the CPU: what a kernel's source needs to compile with a host compiler and run under runtime.cpp.
//
// Blocks run one after the other. The threads of a block are fibres of one operating system's thread: they change only
// where they wait for each other, in an order that a seed picks.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include <crt/host_defines.h>
#include <vector_types.h>

// The checking mode instruments every access of a kernel, but not these functions.
#define CUDA_HOST_OWN __attribute__((no_sanitize("thread"), no_sanitize("undefined")))

extern "C" {
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
}
constexpr int warpSize = 32;

namespace cuda_host {

enum Kind : int { kBlock, kWarp, kShuffle, kBallot, kReduce };

struct Place {
  const char* file;
  int line;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// Waits for the block.
void block_barrier(Place place);
// Waits for the lanes of the mask and gives the 64 bits that each brought; lanes outside of the mask have all bits set.
const uint64_t* rendezvous(Kind kind, unsigned mask, uint64_t value, Place place);
unsigned present_lanes(unsigned mask);
int lane();
// Memory of the running block; `key` tells one declaration from another.
void* shared_memory(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared_memory();
void atomic_access(const void* address, size_t bytes);
// Where a shuffle asks for a lane that brings nothing.
void absent_lane(Place place);

template <class T>
CUDA_HOST_OWN T& shared(const void* key) {
  return *static_cast<T*>(shared_memory(key, sizeof(T), alignof(T) < 16 ? 16 : alignof(T)));
}

template <class T>
CUDA_HOST_OWN T* dynamic_shared() {
  return static_cast<T*>(dynamic_shared_memory());
}

template <class T>
CUDA_HOST_OWN T shuffle(unsigned mask, T value, int source, Place place) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 64 bits");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t* all = rendezvous(kShuffle, mask, bits, place);
  if (!(mask >> source & 1u)) absent_lane(place);
  T result;
  std::memcpy(&result, &all[source], sizeof(T));
  return result;
}

template <class T, class F>
CUDA_HOST_OWN T reduce(unsigned mask, T value, F combine, Place place) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t* all = rendezvous(kReduce, mask, bits, place);
  const unsigned lanes = present_lanes(mask);
  T total{};
  bool is_first = true;
  for (int other = 0; other < 32; ++other) {
    if (!(lanes >> other & 1u)) continue;
    T next;
    std::memcpy(&next, &all[other], sizeof(T));
    total = is_first ? next : combine(total, next);
    is_first = false;
  }
  return total;
}

template <class T, class F>
CUDA_HOST_OWN T atomic(T* address, F change) {
  atomic_access(address, sizeof(T));
  const T before = *address;
  *address = change(before);
  return before;
}

// How a kernel is called from an array of pointers to its arguments.
struct Entry {
  void (*call)(void** arguments);
  int count;
  size_t sizes[64];
};

template <auto kernel>
struct Describe;

template <class... A, void (*kernel)(A...)>
struct Describe<kernel> {
  template <size_t... I>
  CUDA_HOST_OWN static void unpack(void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<A>*>(arguments[I])...);
  }
  CUDA_HOST_OWN static void call(void** arguments) { unpack(arguments, std::index_sequence_for<A...>()); }
  static constexpr Entry entry{&call, sizeof...(A), {sizeof(A)...}};
};

}  // namespace cuda_host

#define CUDA_HOST_KERNEL(name) \
  extern "C" const cuda_host::Entry cuda_host_entry_##name = cuda_host::Describe<&name>::entry;

inline void __syncthreads(cuda_host::Place place = cuda_host::Place::here()) { cuda_host::block_barrier(place); }
inline void __syncwarp(unsigned mask = 0xffffffffu, cuda_host::Place place = cuda_host::Place::here()) {
  cuda_host::rendezvous(cuda_host::kWarp, mask, 0, place);
}
template <class T>
CUDA_HOST_OWN T __shfl_sync(unsigned mask, T value, int source, cuda_host::Place place = cuda_host::Place::here()) {
  return cuda_host::shuffle(mask, value, source & 31, place);
}
template <class T>
CUDA_HOST_OWN T __shfl_xor_sync(unsigned mask, T value, int with, cuda_host::Place place = cuda_host::Place::here()) {
  return cuda_host::shuffle(mask, value, (cuda_host::lane() ^ with) & 31, place);
}
template <class T>
CUDA_HOST_OWN T __shfl_down_sync(unsigned mask, T value, unsigned by, cuda_host::Place place = cuda_host::Place::here()) {
  const int lane = cuda_host::lane();
  return cuda_host::shuffle(mask, value, lane + int(by) < 32 ? lane + int(by) : lane, place);
}
template <class T>
CUDA_HOST_OWN T __shfl_up_sync(unsigned mask, T value, unsigned by, cuda_host::Place place = cuda_host::Place::here()) {
  const int lane = cuda_host::lane();
  return cuda_host::shuffle(mask, value, lane >= int(by) ? lane - int(by) : lane, place);
}
CUDA_HOST_OWN inline unsigned __ballot_sync(unsigned mask, int predicate, cuda_host::Place place = cuda_host::Place::here()) {
  const uint64_t* all = cuda_host::rendezvous(cuda_host::kBallot, mask, predicate != 0, place);
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane) result |= unsigned(all[lane] == 1) << lane;
  return result;
}
CUDA_HOST_OWN inline int __any_sync(unsigned mask, int predicate, cuda_host::Place place = cuda_host::Place::here()) {
  return __ballot_sync(mask, predicate, place) != 0;
}
CUDA_HOST_OWN inline int __all_sync(unsigned mask, int predicate, cuda_host::Place place = cuda_host::Place::here()) {
  const unsigned votes = __ballot_sync(mask, predicate, place);
  return votes == cuda_host::present_lanes(mask);
}
#define CUDA_HOST_REDUCE(name, expression)                                                                      \
  template <class T>                                                                                            \
  CUDA_HOST_OWN T __reduce_##name##_sync(unsigned mask, T value, cuda_host::Place place = cuda_host::Place::here()) {    \
    return cuda_host::reduce(mask, value, [](T a, T b) -> T { return expression; }, place);                     \
  }
CUDA_HOST_REDUCE(add, a + b)
CUDA_HOST_REDUCE(min, a < b ? a : b)
CUDA_HOST_REDUCE(max, a < b ? b : a)
CUDA_HOST_REDUCE(or, a | b)
CUDA_HOST_REDUCE(and, a & b)
#undef CUDA_HOST_REDUCE

#define CUDA_HOST_ATOMIC(name, expression)                                                \
  template <class T>                                                                      \
  CUDA_HOST_OWN T atomic##name(T* address, std::common_type_t<T> value) {                 \
    return cuda_host::atomic(address, [value](T before) -> T { return expression; });     \
  }
CUDA_HOST_ATOMIC(Add, before + value)
CUDA_HOST_ATOMIC(Sub, before - value)
CUDA_HOST_ATOMIC(Exch, (void(before), value))
CUDA_HOST_ATOMIC(Min, before < value ? before : value)
CUDA_HOST_ATOMIC(Max, before < value ? value : before)
CUDA_HOST_ATOMIC(Or, before | value)
CUDA_HOST_ATOMIC(And, before & value)
#undef CUDA_HOST_ATOMIC
template <class T>
CUDA_HOST_OWN T atomicCAS(T* address, std::common_type_t<T> compare, std::common_type_t<T> value) {
  return cuda_host::atomic(address, [=](T before) -> T { return before == compare ? value : before; });
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
template <class To, class From>
CUDA_HOST_OWN To cuda_host_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
inline float __uint_as_float(unsigned x) { return cuda_host_bits<float>(x); }
inline float __int_as_float(int x) { return cuda_host_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return cuda_host_bits<unsigned>(x); }
inline int __float_as_int(float x) { return cuda_host_bits<int>(x); }
// One rounding each, never fused.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a < b ? b : a; }
