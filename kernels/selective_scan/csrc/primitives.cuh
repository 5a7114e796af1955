// What the kernels say in PTX rather than in C++: fast transcendental functions, 16-bit floats and one matrix product.
// No header is included, so that NVRTC needs nothing but this text.

typedef float f32;
struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };

__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float lg2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float to_float(f32 x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ __forceinline__ float to_float(f16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

__device__ __forceinline__ void put(f32* to, float x) { *to = x; }
__device__ __forceinline__ void put(bf16* to, float x) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  *to = y;
}
__device__ __forceinline__ void put(f16* to, float x) {
  f16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  *to = y;
}

// The part of x that survives as an operand of the tensor cores, which read 11 significant bits.
__device__ __forceinline__ float high_part(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }

// That truncation makes a factor smaller by this much on average (mantissas spread logarithmically).
constexpr float MEAN_TRUNCATION = 3.52e-4f;

// sums (16 x 8) += a (16 x 4) b (4 x 8). In lane l: a0 = a[l/4][l%4], a1 = a[8 + l/4][l%4], b = b[l%4][l/4],
// sums[i] = sums[8 (i/2) + l/4][2 (l%4) + i%2].
__device__ __forceinline__ void multiply_add(float (&sums)[4], float a0, float a1, float b) {
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(b)));
}

// sums (16 x 8) += a (16 x 8) b (8 x 8), with only the first 8 rows of a: a0 = a[l/4][l%4], a1 = a[l/4][4 + l%4],
// b0 = b[l%4][l/4], b1 = b[4 + l%4][l/4], sums as above.
__device__ __forceinline__ void multiply_add(float (&sums)[4], float a0, float a1, float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %6, %5, %6}, {%7, %8}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(0u), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
