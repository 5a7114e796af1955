// The tile that one warp works on: 8 steps of 8 channels, with all their states.
//
//   lane = 8 quarter + channel:   a lane owns STATES consecutive states of one channel, its four quarters
//                                 4 STATES of them (one group); more states are more groups, one after the other
//   lane = 4 step + pair:         what does not depend on the state (step size, inflow, gate): the same lane owns the
//                                 two items (step, channel 2 pair) and (step, channel 2 pair + 1)
//
// The host defines: U_T DELTA_T B_T C_T Z_T (f32, bf16 or f16), STATES (1, 2 or 4), GROUPS, SEGMENTS, COLUMNS (forward),
// MIN_BLOCKS, SOFTPLUS, HAS_D, HAS_Z, HAS_BIAS, HAS_STARTS, VECTOR_PAIRS, VECTOR_BC, CHECKPOINT_STEPS.

constexpr int STEPS = 8;
constexpr int CHANNELS = 8;
constexpr int GROUP_STATES = 4 * STATES;
constexpr int PADDED_STATES = GROUPS * GROUP_STATES;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
constexpr float CUT = -1e30f;  // the logarithm of a decay to nothing

// A tensor (batch, length, last) with strides in elements; last is the channel or the state.
struct Rows {
  void* data;
  long long batch, time, last;
};

template <typename T>
__device__ __forceinline__ T* at(const Rows& rows, long long b, long long t, long long last) {
  return static_cast<T*>(rows.data) + b * rows.batch + t * rows.time + last * rows.last;
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

// log(1 + e) for e >= 0. lg2.approx has an absolute error, so the first terms of the series serve where e is small.
__device__ __forceinline__ float log1p_of(float e) {
  const float series =
      e * (1.f + e * (-1.f / 2 + e * (1.f / 3 + e * (-1.f / 4 + e * (1.f / 5 + e * (-1.f / 6))))));
  return e < 0.125f ? series : LN_2 * lg2(1.f + e);
}

struct StepSize {
  float delta, slope;  // delta and its derivative by the raw step size
};

__device__ __forceinline__ StepSize step_size(float raw) {
#if SOFTPLUS
  const float e = ex2(raw * LOG2_E);
  const bool is_linear = raw > 20.f;
  return {is_linear ? raw : log1p_of(e), is_linear ? 1.f : e * reciprocal(1.f + e)};
#else
  return {raw, 1.f};
#endif
}

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.f + ex2(-LOG2_E * x)); }

// The two items of a lane. VECTOR_PAIRS says that two channels always lie side by side, aligned, and end together.
template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T of[2];
};

template <typename T>
__device__ __forceinline__ Pair<T> load_pair(const T* from, long long channel_stride, int remaining) {
  Pair<T> pair = {};
#if VECTOR_PAIRS
  if (remaining > 0) pair = *reinterpret_cast<const Pair<T>*>(from);
#else
  if (remaining > 0) pair.of[0] = from[0];
  if (remaining > 1) pair.of[1] = from[channel_stride];
#endif
  return pair;
}

template <typename T>
__device__ __forceinline__ void put_pair(T* to, long long channel_stride, int remaining, float first, float second) {
  Pair<T> pair;
  put(&pair.of[0], first);
  put(&pair.of[1], second);
#if VECTOR_PAIRS
  if (remaining > 0) *reinterpret_cast<Pair<T>*>(to) = pair;
#else
  if (remaining > 0) to[0] = pair.of[0];
  if (remaining > 1) to[channel_stride] = pair.of[1];
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

// B or C of the 8 steps: four consecutive states a time, lane by lane.
constexpr int QUADS = STEPS * PADDED_STATES / 4;
constexpr int QUADS_PER_LANE = (QUADS + 31) / 32;

template <typename T>
struct alignas(4 * sizeof(T)) Quad {
  T of[4];
};

template <typename T>
__device__ __forceinline__ void load_quads(
    Quad<T> (&to)[QUADS_PER_LANE], const Rows& rows, long long b, long long t0, long long length, int state, int lane) {
#pragma unroll
  for (int i = 0; i < QUADS_PER_LANE; ++i) {
    const int quad = lane + 32 * i, n = quad % (PADDED_STATES / 4) * 4;
    const long long t = t0 + quad / (PADDED_STATES / 4);
    const bool exists = quad < QUADS && t < length;
    to[i] = Quad<T>{};
#if VECTOR_BC
    if (exists) to[i] = *reinterpret_cast<const Quad<T>*>(at<T>(rows, b, t, 0) + n);
#else
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (exists && n + j < state) to[i].of[j] = *at<T>(rows, b, t, n + j);
    }
#endif
  }
}

template <typename T>
__device__ __forceinline__ void stage_quads(float* tile, const Quad<T> (&from)[QUADS_PER_LANE], int lane) {
#pragma unroll
  for (int i = 0; i < QUADS_PER_LANE; ++i) {
    const int quad = lane + 32 * i;
    const Float4 values = {to_float(from[i].of[0]), to_float(from[i].of[1]), to_float(from[i].of[2]), to_float(from[i].of[3])};
    if (quad < QUADS) reinterpret_cast<Float4*>(tile)[quad] = values;
  }
}

// Sums over states meet in shared memory: each quarter leaves its part of 8 steps per channel, the items' owners add
// the four. Rows of 12 floats keep both accesses free of bank conflicts.
constexpr int PART_ROW = 12;
constexpr int PART_SIZE = 4 * CHANNELS * PART_ROW;

__device__ __forceinline__ Float2 sum_parts(const float* parts, int step, int pair) {
  Float2 sum = {0.f, 0.f};
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const float* row = parts + (q * CHANNELS + 2 * pair) * PART_ROW + step;
    sum.x += row[0];
    sum.y += row[PART_ROW];
  }
  return sum;
}

// CUT where a sequence starts, 0 elsewhere: added to log2 of the decay it takes the state's past away.
__device__ __forceinline__ void stage_starts(float* cut, const unsigned char* starts, long long batch_stride,
                                             long long time_stride, long long b, long long t0, long long length, int lane) {
  if (lane < STEPS) {
    const long long t = t0 + lane;
    cut[lane] = t < length && starts[b * batch_stride + t * time_stride] ? CUT : 0.f;
  }
}
