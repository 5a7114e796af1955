// One position of the selective scan, its state changed in place:
//
//   delta = softplus(raw + bias),   h = exp(delta A) h + delta u B,   y = (<C, h> + D u) silu(z)
//
// where raw is given, or is the product of a row of `delta_weight` with a few numbers of the token.
//
// Four lanes (quarters) own the states of one channel and share its product; they keep what belongs to the channel in
// registers and go through the sequences. The host defines: U_T DELTA_T A_T B_T C_T D_T Z_T BIAS_T WEIGHT_T STATE_T (f32,
// bf16 or f16), STATE, RANK (0: raw is given), PER_LANE and PER_RANK (neighbours read at once: 4 or 1), SOFTPLUS,
// LOG_RATES, HAS_D, HAS_Z, HAS_BIAS, THREADS.

constexpr int QUARTERS = 4;
constexpr int GROUPS = (STATE + QUARTERS * PER_LANE - 1) / (QUARTERS * PER_LANE);
constexpr int RANK_GROUPS = (RANK + QUARTERS * PER_RANK - 1) / (QUARTERS * PER_RANK);

// A tensor (batch, last), strides in bytes.
struct Rows {
  const char* data;
  long long batch, last;

  __device__ __forceinline__ const char* at(long long b, long long i) const { return data + b * batch + i * last; }
};

struct StepArguments {
  Rows u, delta, B, C, z;
  char* state;
  long long state_batch, state_channel, state_last;
  const char *A, *D, *bias, *weight;  // dense
  char* y;                            // dense (batch, channels)
  long long batch, channels, batch_groups;
};

// log(1 + e) for e >= 0. lg2.approx has an absolute error, so the first terms of the series serve where e is small.
__device__ __forceinline__ float log1p_of(float e) {
  const float series =
      e * (1.f + e * (-1.f / 2 + e * (1.f / 3 + e * (-1.f / 4 + e * (1.f / 5 + e * (-1.f / 6))))));
  return e < 0.125f ? series : LN_2 * lg2(1.f + e);
}

__device__ __forceinline__ float step_size(float raw) {
  return SOFTPLUS ? fmaxf(raw, 0.f) + log1p_of(ex2(-LOG2_E * fabsf(raw))) : raw;
}

// Everything of one channel over its four lanes.
__device__ __forceinline__ float sum_of_quarters(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

template <typename T>
__device__ __forceinline__ float element(const char* from) {
  return to_float(*reinterpret_cast<const T*>(from));
}

// This lane's share of COUNT dense entries, zero where there are none.
template <typename T, int COUNT, int WIDTH, int SHARES>
__device__ __forceinline__ void read_shares(float (&shares)[SHARES], const char* from, long long stride, int quarter) {
#pragma unroll
  for (int group = 0; group < SHARES / WIDTH; ++group) {
    const int first = (group * QUARTERS + quarter) * WIDTH;
    Raw<T, WIDTH> raw = {};
    if (COUNT % (QUARTERS * WIDTH) == 0 || first < COUNT) raw = load<T, WIDTH>(from + first * stride);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) shares[group * WIDTH + i] = value(raw, i);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) step(const __grid_constant__ StepArguments a) {
  const long long blocks_across = (a.channels * QUARTERS + THREADS - 1) / THREADS;
  const long long group_of_rows = blockIdx.x / blocks_across;
  const long long entry = blockIdx.x % blocks_across * THREADS + threadIdx.x;
  const int quarter = entry % QUARTERS;
  const bool exists = entry / QUARTERS < a.channels;
  const long long channel = exists ? entry / QUARTERS : a.channels - 1;  // all lanes take part in the sums

  float rates[GROUPS * PER_LANE], weight[RANK_GROUPS * PER_RANK + !RANK];
  read_shares<A_T, STATE, PER_LANE>(rates, a.A + channel * STATE * (long long)sizeof(A_T), sizeof(A_T), quarter);
#pragma unroll
  for (int i = 0; i < GROUPS * PER_LANE; ++i) rates[i] = LOG_RATES ? -LOG2_E * ex2(LOG2_E * rates[i]) : LOG2_E * rates[i];
  if (RANK) {
    read_shares<WEIGHT_T, RANK, PER_RANK>(weight, a.weight + channel * RANK * (long long)sizeof(WEIGHT_T), sizeof(WEIGHT_T), quarter);
  }
  const float bias = HAS_BIAS ? to_float(reinterpret_cast<const BIAS_T*>(a.bias)[channel]) : 0.f;
  const float skip = HAS_D ? to_float(reinterpret_cast<const D_T*>(a.D)[channel]) : 0.f;

#pragma unroll 1
  for (long long b = group_of_rows; b < a.batch; b += a.batch_groups) {
    char* state = a.state + b * a.state_batch + channel * a.state_channel;
    float h[GROUPS * PER_LANE], B[GROUPS * PER_LANE], C[GROUPS * PER_LANE];
    read_shares<STATE_T, STATE, PER_LANE>(h, state, a.state_last, quarter);
    read_shares<B_T, STATE, PER_LANE>(B, a.B.at(b, 0), a.B.last, quarter);
    read_shares<C_T, STATE, PER_LANE>(C, a.C.at(b, 0), a.C.last, quarter);
    const float u = element<U_T>(a.u.at(b, channel));
    const float z = HAS_Z ? element<Z_T>(a.z.at(b, channel)) : 0.f;
    float raw;
    if (RANK) {
      float token[RANK_GROUPS * PER_RANK + !RANK], sum = 0.f;
      read_shares<DELTA_T, RANK, PER_RANK>(token, a.delta.at(b, 0), a.delta.last, quarter);
#pragma unroll
      for (int i = 0; i < RANK_GROUPS * PER_RANK; ++i) sum = fmaf(weight[i], token[i], sum);
      raw = sum_of_quarters(sum);
    } else {
      raw = element<DELTA_T>(a.delta.at(b, channel));
    }

    const float delta = step_size(raw + bias), inflow = delta * u;
    float y = 0.f;
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
      float next[PER_LANE];
#pragma unroll
      for (int i = 0; i < PER_LANE; ++i) {
        const int k = group * PER_LANE + i;
        next[i] = fmaf(ex2(delta * rates[k]), h[k], inflow * B[k]);
        y = fmaf(C[k], next[i], y);
      }
      const int first = (group * QUARTERS + quarter) * PER_LANE;
      if (exists && first < STATE) store<STATE_T, PER_LANE>(state + first * a.state_last, next);
    }
    y = fmaf(skip, u, sum_of_quarters(y));
    if (HAS_Z) y *= z * sigmoid(z);
    if (exists && quarter == 0) put(reinterpret_cast<U_T*>(a.y) + b * a.channels + channel, y);
  }
}
