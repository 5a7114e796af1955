// Neighbours in memory, read and written as whole words (after numbers.cuh).

// Two 16-bit numbers as one word, the first in the lower half.
__device__ __forceinline__ unsigned packed(bf16, float first, float second) {
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
__device__ __forceinline__ unsigned packed(f16, float first, float second) {
  unsigned word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.f + ex2(-LOG2_E * x)); }

// COUNT neighbours as they lie in memory. Whole words, so that a load in flight is waited for only where it is used.
template <typename T, int COUNT>
struct alignas(COUNT * sizeof(T) < 4 ? 4 : COUNT * sizeof(T) > 16 ? 16 : COUNT * sizeof(T)) Raw {
  unsigned words[(COUNT * sizeof(T) + 3) / 4];
};

template <int COUNT>
__device__ __forceinline__ float value(const Raw<f32, COUNT>& raw, int i) {
  return __uint_as_float(raw.words[i]);
}
template <int COUNT>
__device__ __forceinline__ float value(const Raw<bf16, COUNT>& raw, int i) {
  return __uint_as_float(i % 2 ? raw.words[i / 2] & 0xffff0000u : raw.words[i / 2] << 16);
}
template <int COUNT>
__device__ __forceinline__ float value(const Raw<f16, COUNT>& raw, int i) {
  return to_float(f16{(unsigned short)(raw.words[i / 2] >> i % 2 * 16)});
}

// COUNT neighbours, aligned to their size or to 16 bytes; a single one wherever it lies.
template <typename T, int COUNT>
__device__ __forceinline__ Raw<T, COUNT> load(const char* from) {
  if constexpr (COUNT * sizeof(T) >= 4) {
    return *reinterpret_cast<const Raw<T, COUNT>*>(from);
  } else {
    return {*reinterpret_cast<const unsigned short*>(from)};
  }
}

template <typename T, int COUNT>
__device__ __forceinline__ void store(char* to, const float (&values)[COUNT]) {
  if constexpr (COUNT * sizeof(T) < 4) {
    put(reinterpret_cast<T*>(to), values[0]);
  } else {
    Raw<T, COUNT> raw;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if constexpr (sizeof(T) == 4) {
        raw.words[i] = __float_as_uint(values[i]);
      } else if (i % 2 == 0) {
        raw.words[i / 2] = packed(T{}, values[i], values[i + 1]);
      }
    }
    *reinterpret_cast<Raw<T, COUNT>*>(to) = raw;
  }
}
