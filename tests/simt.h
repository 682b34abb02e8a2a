// The CUDA that TVM generates, as C++ for the CPU: what tests/simt.py puts before every kernel source.
// The machinery behind it (fibers, memory checks, warp-wide instructions) is tests/simt.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tvm/ffi/c_api.h>

#define SIMT_VECTOR(scalar, name, align2, align4)                                   \
  struct name##1 { scalar x; };                                                     \
  struct alignas(align2) name##2 { scalar x, y; };                                  \
  struct name##3 { scalar x, y, z; };                                               \
  struct alignas(align4) name##4 { scalar x, y, z, w; };                            \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }              \
  inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
SIMT_VECTOR(signed char, char, 2, 4)
SIMT_VECTOR(unsigned char, uchar, 2, 4)
SIMT_VECTOR(short, short, 4, 8)
SIMT_VECTOR(unsigned short, ushort, 4, 8)
SIMT_VECTOR(int, int, 8, 16)
SIMT_VECTOR(unsigned, uint, 8, 16)
SIMT_VECTOR(long, long, 16, 16)
SIMT_VECTOR(unsigned long, ulong, 16, 16)
SIMT_VECTOR(long long, longlong, 16, 16)
SIMT_VECTOR(unsigned long long, ulonglong, 16, 16)
SIMT_VECTOR(float, float, 8, 16)
#undef SIMT_VECTOR
using dim3 = uint3;

namespace simt {

struct Kernel {
  const char* name;
  void (*thread)(const TVMFFIAny* arguments);  // one thread of it
  int arguments, tags;
  const char* const* tag;  // what the integers after the arguments are: "blockIdx.x", ..., the dynamic bytes
  char *shared, *shared_end;
};

extern "C" {
int simt_launch(const Kernel*, const TVMFFIAny* arguments, int count);
void simt_barrier();
void simt_meet(unsigned mask);  // __syncwarp
unsigned simt_active();
uint64_t simt_exchange(const char* name, unsigned mask, uint64_t value, unsigned source, bool valid);
void simt_gather(const char* name, unsigned mask, uint64_t value, uint64_t* all);  // of all 32 lanes
uint32_t simt_window(const void* pointer);  // a pointer into shared memory as the address that PTX takes
char* simt_dynamic();
void simt_mma(const char* name, int m, int k, int bits, bool a_signed, bool b_signed, bool saturate, uint32_t* d,
              const uint32_t* a, const uint32_t* b, const uint32_t* c);
void simt_ldmatrix(const char* name, int count, bool transposed, uint32_t* d, uint32_t address);
void simt_copy(uint32_t to, const void* from, unsigned bytes, unsigned kept);
void simt_commit();
void simt_wait(unsigned groups);
void simt_atomic(const void* pointer, size_t bytes);
}

template <class T> struct Argument {
  static T get(const TVMFFIAny& a) { return static_cast<T>(a.v_int64); }
};
template <class T> struct Argument<T*> {
  static T* get(const TVMFFIAny& a) { return static_cast<T*>(a.v_ptr); }
};
template <> struct Argument<float> {
  static float get(const TVMFFIAny& a) { return static_cast<float>(a.v_float64); }
};

template <class... T> struct Call {
  Call(void (*kernel)(T...), T... arguments) { kernel(arguments...); }
};
template <class... T> inline void call(void (*kernel)(T...), const TVMFFIAny* a) {
  Call<T...>{kernel, Argument<T>::get(*a++)...};  // braces: evaluated from left to right
}

template <class T> inline uint64_t bits_of(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T> inline T value_of(uint64_t bits) {
  T value;
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

inline unsigned lane();

using u8 = uint8_t;
using s8 = int8_t;

// The instructions of PTX that are no more than arithmetic.
inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, unsigned table) {
  uint32_t d = 0;
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) d |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return d;
}

inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t d = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> 4 * i & 15;
    uint32_t byte = bytes >> 8 * (s & 7) & 255;
    if (s & 8) byte = byte & 128 ? 255 : 0;  // its sign, eight times
    d |= byte << 8 * i;
  }
  return d;
}

template <class A, class B> inline uint32_t dp4a(uint32_t a, uint32_t b, uint32_t c) {
  for (int i = 0; i < 4; ++i) c += uint32_t(int32_t(A(a >> 8 * i)) * int32_t(B(b >> 8 * i)));
  return c;
}

inline uint32_t pack(int32_t a, int32_t b, uint32_t c, int bits, bool is_signed) {  // cvt.pack.sat
  const int32_t low = is_signed ? -(1 << (bits - 1)) : 0, high = is_signed ? (1 << (bits - 1)) - 1 : (1 << bits) - 1;
  const uint32_t mask = (1u << bits) - 1;
  a = a < low ? low : a > high ? high : a;
  b = b < low ? low : b > high ? high : b;
  return (bits == 16 ? 0 : c << 2 * bits) | (uint32_t(a) & mask) << bits | (uint32_t(b) & mask);
}

}  // namespace simt

// Constant as far as a thread can see: a fiber is resumed with its own values in place.
#ifndef SIMT_CONSTANT
#define SIMT_CONSTANT const
#endif
extern SIMT_CONSTANT uint3 threadIdx, blockIdx, blockDim, gridDim;
inline unsigned simt::lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32; }
static const int warpSize = 32;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

inline void __syncthreads() { simt::simt_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { simt::simt_meet(mask); }
inline unsigned __activemask() { return simt::simt_active(); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline size_t __cvta_generic_to_shared(const void* pointer) { return simt::simt_window(pointer); }

// Shuffles: a segment is `width` lanes; a source outside of it is the lane itself (or, for __shfl_sync, wraps).
template <class T> inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned lane = simt::lane(), first = lane & ~(unsigned(width) - 1);
  return simt::value_of<T>(
      simt::simt_exchange("__shfl_sync", mask, simt::bits_of(value), first + (source & (width - 1)), true));
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32) {
  const unsigned lane = simt::lane(), from = lane ^ flip, end = (lane & ~(unsigned(width) - 1)) + width;
  return simt::value_of<T>(simt::simt_exchange("__shfl_xor_sync", mask, simt::bits_of(value), from, from < end));
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const unsigned lane = simt::lane(), end = (lane & ~(unsigned(width) - 1)) + width;
  return simt::value_of<T>(
      simt::simt_exchange("__shfl_down_sync", mask, simt::bits_of(value), lane + by, lane + by < end));
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const unsigned lane = simt::lane(), first = lane & ~(unsigned(width) - 1);
  return simt::value_of<T>(
      simt::simt_exchange("__shfl_up_sync", mask, simt::bits_of(value), lane - by, lane >= first + by));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  uint64_t all[32];
  simt::simt_gather("__ballot_sync", mask, predicate != 0, all);
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) ballot |= unsigned(mask >> i & all[i] & 1) << i;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
#define SIMT_REDUCE(name, T, expression)                       \
  inline T name(unsigned mask, T value) {                      \
    uint64_t all[32];                                          \
    bool first = true;                                         \
    T a = T();                                                 \
    simt::simt_gather(#name, mask, simt::bits_of(value), all); \
    for (int i = 0; i < 32; ++i)                               \
      if (mask >> i & 1) {                                     \
        const T b = simt::value_of<T>(all[i]);                 \
        a = first ? b : T(expression);                         \
        first = false;                                         \
      }                                                        \
    return a;                                                  \
  }
SIMT_REDUCE(__reduce_add_sync, int, unsigned(a) + unsigned(b))
SIMT_REDUCE(__reduce_add_sync, unsigned, a + b)
SIMT_REDUCE(__reduce_min_sync, int, a < b ? a : b)
SIMT_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
SIMT_REDUCE(__reduce_max_sync, int, a > b ? a : b)
SIMT_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)

inline int __dp4a(int a, int b, int c) { return simt::dp4a<int8_t, int8_t>(a, b, c); }
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) { return simt::dp4a<uint8_t, uint8_t>(a, b, c); }
inline int __mulhi(int a, int b) { return int64_t(a) * b >> 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }
inline long long __mul64hi(long long a, long long b) { return __int128(a) * b >> 64; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned __int128)a * b >> 64;
}
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1) << (31 - i);
  return r;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) { return simt::prmt(a, b, s & 0x7777); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return ((uint64_t(high) << 32 | low) << (by & 31)) >> 32;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  return (uint64_t(high) << 32 | low) >> (by & 31);
}
template <class T> inline T __ldg(const T* pointer) { return *pointer; }
template <class A, class B> inline auto min(A a, B b) -> decltype(a + b) { return b < a ? b : a; }
template <class A, class B> inline auto max(A a, B b) -> decltype(a + b) { return a < b ? b : a; }
template <class T> inline T abs(T a) { return a < 0 ? -a : a; }

// Nothing interrupts a fiber, so a plain read and write is atomic; hidden from the check for races.
#define SIMT_ATOMIC(name, expression)                                                    \
  template <class T> __attribute__((no_sanitize("thread"))) inline T name(T* at, T by) { \
    simt::simt_atomic(at, sizeof(T));                                                    \
    const T old = *at;                                                                   \
    *at = expression;                                                                    \
    return old;                                                                          \
  }
SIMT_ATOMIC(atomicAdd, old + by)
SIMT_ATOMIC(atomicMin, by < old ? by : old)
SIMT_ATOMIC(atomicMax, old < by ? by : old)
SIMT_ATOMIC(atomicAnd, old& by)
SIMT_ATOMIC(atomicOr, old | by)
SIMT_ATOMIC(atomicExch, by)
