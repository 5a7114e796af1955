// What forward and backward share, and the tile that a warp of the backward works on: 8 steps of 8 channels, with all
// their states. (That of the forward has twice the channels or twice the steps: forward.cu.)
//
// A lane owns STATES consecutive states of one channel; the four lanes of a channel (its quarters) own 4 STATES, one
// group. More states are more groups, one after the other. What does not depend on the state (step size, inflow, gate)
// is an item (step, channel): a lane owns those of one step for channels 2 pair and 2 pair + 1.
//
// The host defines: U_T DELTA_T B_T C_T Z_T (f32, bf16 or f16), STATES (1, 2 or 4), GROUPS, SEGMENTS, MIN_BLOCKS,
// SOFTPLUS, HAS_D, HAS_Z, HAS_BIAS, HAS_STARTS, VECTOR_PAIRS, VECTOR_BC, SPLIT_OPERANDS; for the forward COLUMNS,
// CHECKPOINT_STEPS (0: no states are saved) and WIDE_STEPS.

constexpr int STEPS = 8;
constexpr int CHANNELS = 8;
constexpr int GROUP_STATES = 4 * STATES;
constexpr int PADDED_STATES = GROUPS * GROUP_STATES;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
constexpr float CUT = -1e30f;  // the logarithm of a decay to nothing

// A tensor (batch, length, last) with strides in elements; last is the channel or the state.
struct Rows {
  char* data;
  long long batch, time, last;
  long long step;    // bytes from a step to the next
  long long across;  // bytes to the next 8 channels
};

template <typename T>
__device__ __forceinline__ char* at(const Rows& rows, long long b, long long t, long long last) {
  return rows.data + (b * rows.batch + t * rows.time + last * rows.last) * (long long)sizeof(T);
}

// COUNT neighbours as they lie in memory. Whole words, so that a load in flight is waited for only where it is used.
template <typename T, int COUNT>
struct alignas(COUNT * sizeof(T) < 4 ? 4 : COUNT * sizeof(T)) Raw {
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

template <typename T, int COUNT>
__device__ __forceinline__ void set_bits(Raw<T, COUNT>& raw, int i, const char* from) {
  if constexpr (sizeof(T) == 4) {
    raw.words[i] = *reinterpret_cast<const unsigned*>(from);
  } else {
    raw.words[i / 2] |= (unsigned)*reinterpret_cast<const unsigned short*>(from) << i % 2 * 16;
  }
}

// STATES consecutive floats as one vector access.
struct alignas(4 * STATES) States {
  float of[STATES];
};

struct alignas(16) Float4 {
  float x, y, z, w;
};
struct alignas(8) Float2 {
  float x, y;
};

// log(1 + e) for 0 <= e <= 1: e p(e) with the polynomials of the smallest relative error, 3e-8 and 8e-6. The latter
// serves where the operands of matrix products are rounded to 1e-4 and more anyway.
__device__ __forceinline__ float log1p_of(float e) {
#if SPLIT_OPERANDS
  float p = 5.2282930e-3f;
  p = fmaf(p, e, -2.9486502e-2f);
  p = fmaf(p, e, 7.8193101e-2f);
  p = fmaf(p, e, -1.3660199e-1f);
  p = fmaf(p, e, 1.9104386e-1f);
  p = fmaf(p, e, -2.4842494e-1f);
  p = fmaf(p, e, 3.3319019e-1f);
  p = fmaf(p, e, -4.9999488e-1f);
  return e * fmaf(p, e, 9.9999997e-1f);
#else
  float p = -2.3856354e-2f;
  p = fmaf(p, e, 1.0118699e-1f);
  p = fmaf(p, e, -2.1001327e-1f);
  p = fmaf(p, e, 3.2519111e-1f);
  p = fmaf(p, e, -4.9935855e-1f);
  return e * fmaf(p, e, 9.9999146e-1f);
#endif
}

struct StepSize {
  float delta, slope;  // delta and its derivative by the raw step size
};

__device__ __forceinline__ StepSize step_size(float raw) {
#if SOFTPLUS
  const float e = ex2(-LOG2_E * fabsf(raw)), share = reciprocal(1.f + e);
  return {fmaxf(raw, 0.f) + log1p_of(e), raw > 0.f ? share : e * share};
#else
  return {raw, 1.f};
#endif
}

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.f + ex2(-LOG2_E * x)); }

template <typename T>
__device__ __forceinline__ Raw<T, 2> packed(float first, float second) {
  if constexpr (sizeof(T) == 4) {
    return {__float_as_uint(first), __float_as_uint(second)};
  } else {
    T low, high;
    put(&low, first);
    put(&high, second);
    return {low.bits | (unsigned)high.bits << 16};
  }
}

// The two items of a lane. VECTOR_PAIRS says that two channels always lie side by side, aligned, and end together.
// Loads depend on no condition where that can be had, for a load that may not happen is waited for at once: `from`
// must be readable even if there are no items.
template <typename T>
__device__ __forceinline__ Raw<T, 2> load_pair(const char* from, long long channel_stride, int num_items) {
#if VECTOR_PAIRS
  return *reinterpret_cast<const Raw<T, 2>*>(from);
#else
  Raw<T, 2> pair = {};
  if (num_items > 0) set_bits(pair, 0, from);
  if (num_items > 1) set_bits(pair, 1, from + channel_stride * (long long)sizeof(T));
  return pair;
#endif
}

template <typename T>
__device__ __forceinline__ void put_pair(char* to, long long channel_stride, int remaining, float first, float second) {
#if VECTOR_PAIRS
  if (remaining > 0) *reinterpret_cast<Raw<T, 2>*>(to) = packed<T>(first, second);
#else
  if (remaining > 0) put(reinterpret_cast<T*>(to), first);
  if (remaining > 1) put(reinterpret_cast<T*>(to + channel_stride * (long long)sizeof(T)), second);
#endif
}

// log2(e) A of this lane's states: exp(delta A) = ex2(delta rate). Missing states get 0.
__device__ __forceinline__ States load_rates(const float* A, long long channel, long long channels, int first, int state) {
  States rates;
#pragma unroll
  for (int k = 0; k < STATES; ++k) {
    const bool exists = channel < channels && first + k < state;
    rates.of[k] = exists ? LOG2_E * A[channel * state + first + k] : 0.f;
  }
  return rates;
}

// A (batch, channels, state) tensor's entries of this lane's states, 0 where there is no tensor or no state.
__device__ __forceinline__ States load_states(const float* from, long long row, bool exists, int first, int state) {
  States states;
#pragma unroll
  for (int k = 0; k < STATES; ++k) {
    states.of[k] = from && exists && first + k < state ? from[row * state + first + k] : 0.f;
  }
  return states;
}

__device__ __forceinline__ void store_states(float* to, long long row, bool exists, int first, int state, const States& states) {
#pragma unroll
  for (int k = 0; k < STATES; ++k) {
    if (exists && first + k < state) to[row * state + first + k] = states.of[k];
  }
}

// B or C of the 8 steps: lane 4 step + quarter holds its quarter's states of that step, group by group.
template <typename T>
__device__ __forceinline__ Raw<T, STATES> load_quarter(const char* from, long long state_stride, int num_states) {
#if VECTOR_BC
  return *reinterpret_cast<const Raw<T, STATES>*>(from);
#else
  Raw<T, STATES> quarter = {};
#pragma unroll
  for (int k = 0; k < STATES; ++k) {
    if (k < num_states) set_bits(quarter, k, from + k * state_stride * (long long)sizeof(T));
  }
  return quarter;
#endif
}

template <typename T>
__device__ __forceinline__ States values(const Raw<T, STATES>& raw) {
  States states;
#pragma unroll
  for (int k = 0; k < STATES; ++k) states.of[k] = value(raw, k);
  return states;
}

// The items' factors, by channel and step; rows of 12 keep the accesses free of bank conflicts.
constexpr int ROW = 12;

struct EightSteps {
  float of[STEPS];
};

__device__ __forceinline__ EightSteps read_row(const float* rows, int channel) {
  const Float4 first = *reinterpret_cast<const Float4*>(rows + channel * ROW);
  const Float4 second = *reinterpret_cast<const Float4*>(rows + channel * ROW + 4);
  return {{first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w}};
}

// CUT where a sequence starts, 0 elsewhere: added to log2 of the decay it takes the state's past away.
__device__ __forceinline__ void stage_starts(float* cut, const unsigned char* starts, long long batch_stride,
                                             long long time_stride, long long b, long long t0, long long length, int lane) {
  if (lane < STEPS) {
    const long long t = t0 + lane;
    cut[lane] = t < length && starts[b * batch_stride + t * time_stride] ? CUT : 0.f;
  }
}
