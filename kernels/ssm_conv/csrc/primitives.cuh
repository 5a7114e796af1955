// What the convolution says in PTX rather than in C++: bfloat16 pairs, matrix products of them, copies in the background
// (after numbers.cuh).

// Two bfloat16 in a word, the first in the low half.
__device__ __forceinline__ unsigned pack(float first, float second) {
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
__device__ __forceinline__ float first_of(unsigned word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float second_of(unsigned word) { return __uint_as_float(word & 0xffff0000u); }

// sums (16 x 8) += a (16 x 16) b (16 x 8). With g = lane / 4 and t = lane % 4: sums are [g][2t], [g][2t+1], [8+g][2t],
// [8+g][2t+1]; a pairs at [g][2t], [8+g][2t], [g][8+2t], [8+g][8+2t]; b pairs down a column at [2t][g], [8+2t][g].
__device__ __forceinline__ void multiply_add(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Starts a copy of BYTES (4, 8 or 16) to shared memory; zeros arrive where `exists` is false.
template <int BYTES>
__device__ __forceinline__ void copy_in_background(void* to, const void* from, bool exists) {
  const unsigned address = (unsigned)__cvta_generic_to_shared(to);
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(exists ? 16 : 0) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(address), "l"(from), "r"(exists ? BYTES : 0), "n"(BYTES)
                 : "memory");
  }
}
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
}

__device__ __forceinline__ float2 multiply(float2 a, float2 b) {
  return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}
// a b + c
__device__ __forceinline__ float2 multiply_add(float2 a, float2 b, float2 c) {
  return make_float2(fmaf(a.x, b.x, fmaf(-a.y, b.y, c.x)), fmaf(a.x, b.y, fmaf(a.y, b.x, c.y)));
}

constexpr int STEPS = 16;  // of a chunk
constexpr int STATES = 4 * STATE_TILES;  // complex ones, padded
constexpr int ROW_STEPS = SUBS * STEPS;
constexpr int PART = 3 * 2 * STATES + ROW_STEPS;  // of the gradients, as `gradients` writes them and `finish` reads them

// x0 and x1 as the sums of two bfloat16 each, to 18 bits.
__device__ __forceinline__ void split(float first, float second, unsigned& high, unsigned& low) {
  high = pack(first, second);
  low = pack(first - first_of(high), second - second_of(high));
}
