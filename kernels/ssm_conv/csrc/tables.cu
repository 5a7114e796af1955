// The factors of the chunked convolution, for every channel, as `convolve` holds them in registers.
//
// Powers are built by multiplication in float64 from one exponential a state, and split into a high and a low
// bfloat16. One warp makes the tables of one channel, a lane those of one state.

struct TablesArguments {
  Parameters parameters;
  const float* D;  // (channels) or none
  uint4 *into_table, *out_table, *near_table;
  float2* decay_table;               // (channels, STATES): a^16
  float2* row_table;                 // (channels, STATES, 4): of a row's power 1, 2, 4, 8
  float2* step_table;                // (channels, 2, STATES): a, and what a step adds to the state
};

// Writes the columns (real, imaginary) of state `n` as the right factor of a product over the steps of a chunk.
__device__ __forceinline__ void store_columns(uint4* table, int n, const float2 (&weights)[STEPS]) {
#pragma unroll
  for (int pair = 0; pair < STEPS / 2; ++pair) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const float2 first = weights[2 * pair], second = weights[2 * pair + 1];
      unsigned high, low;
      split(part ? first.y : first.x, part ? second.y : second.x, high, low);
      unsigned* word = reinterpret_cast<unsigned*>(&table[n / 4 * 32 + (2 * (n % 4) + part) * 4 + pair % 4]) + pair / 4;
      word[0] = high;
      word[2] = low;
    }
  }
}

constexpr int TABLE_WARPS = 4;
// The lowest power in each factor. Forward, an input enters the state at once and is read one step later; backward it is
// the other way round.
constexpr int INTO_SHIFT = REVERSE, OUT_SHIFT = 1 - REVERSE;

extern "C" __global__ void __launch_bounds__(32 * TABLE_WARPS) tables(const __grid_constant__ TablesArguments x) {
  __shared__ float taps[TABLE_WARPS][STEPS + 1];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const long long channel = blockIdx.x * (long long)TABLE_WARPS + warp;
  const Discrete state = discretize(x.parameters, channel, lane);
  // Backward, what read the state writes to its gradient, and what wrote to it reads.
  const Complex into = REVERSE ? state.out : state.into, out = REVERSE ? state.into : state.out;
  Complex power = {1., 0.};
  const Complex product = into * out;
  const bool is_state = lane < STATES && channel < x.parameters.channels;
  // Where the rows of this lane's state lie in the second factor.
  uint4* out_table = x.out_table + (channel * STATE_TILES + lane / 8 * 2) * 32;
  float2 entering[STEPS];
#pragma unroll
  for (int k = 0; k <= STEPS; ++k) {
    if (k < STEPS) {
      double tap = product.re * power.re - product.im * power.im;
      for (int step = 16; step > 0; step /= 2) tap += __shfl_xor_sync(0xffffffffu, tap, step);
      if (lane == 0) taps[warp][k] = (float)(tap + (k == 0 && x.D != nullptr && channel < x.parameters.channels ? x.D[channel] : 0.));
    }
    if (k >= OUT_SHIFT && k < STEPS + OUT_SHIFT && is_state) {
      const int time = k - OUT_SHIFT;
      const Complex w = out * power;
      unsigned high, low;
      split((float)w.re, (float)-w.im, high, low);
      unsigned* word = reinterpret_cast<unsigned*>(&out_table[time / 8 * 32 + time % 8 * 4 + lane % 4]) + lane / 4 % 2;
      word[0] = high;
      word[2] = low;
    }
    if (k >= INTO_SHIFT && k < STEPS + INTO_SHIFT) {
      const Complex w = into * power;
      entering[STEPS - 1 - (k - INTO_SHIFT)] = narrow(w);
    }
    if (k < STEPS) power = power * state.a;
  }
  if (is_state) {
    store_columns(x.into_table + channel * STATE_TILES * 32, lane, entering);
    // `power` is that of a chunk; a row is SUBS chunks.
    x.decay_table[channel * STATES + lane] = narrow(power);
    Complex row = power;
    for (int chunk = 1; chunk < SUBS; ++chunk) row = row * power;
    for (int i = 0; i < 4; ++i) {
      x.row_table[(channel * STATES + lane) * 4 + i] = narrow(row);
      row = row * row;
    }
    float2* step = x.step_table + channel * 2 * STATES + lane;
    step[0] = narrow(state.a);
    step[STATES] = narrow(REVERSE ? into * state.a : into);
  }
  __syncwarp();
  if (channel < x.parameters.channels) {
    // Input time k reaches output time n through tap n - k.
    const int g = lane / 4, t = lane % 4;
    auto tap = [&](int lag) { return lag < 0 ? 0.f : taps[warp][lag]; };
    uint4 word;
    split(tap(g - 2 * t), tap(g - 2 * t - 1), word.x, word.z);
    split(tap(8 + g - 2 * t), tap(8 + g - 2 * t - 1), word.y, word.w);
    x.near_table[channel * 32 + lane] = word;
  }
}

struct GradientTablesArguments {
  Parameters parameters;
  uint4* power_table;                // (channels, 2, STATE_TILES, 32): a^(15-k), then (15-k)/16 a^(15-k)
  float2* weight_table;              // (channels, 2, STATES): b, c
};

// What `gradients` needs beside the tables above.
extern "C" __global__ void __launch_bounds__(32 * TABLE_WARPS)
    gradient_tables(const __grid_constant__ GradientTablesArguments x) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const long long channel = blockIdx.x * (long long)TABLE_WARPS + warp;
  if (channel >= x.parameters.channels || lane >= STATES) return;
  const Discrete state = discretize(x.parameters, channel, lane);
  Complex power = {lane < x.parameters.state ? 1. : 0., 0.};
  float2 plain[STEPS], counted[STEPS];
#pragma unroll
  for (int k = 0; k < STEPS; ++k) {
    plain[STEPS - 1 - k] = narrow(power);
    counted[STEPS - 1 - k] = narrow((double)k / STEPS * power);
    power = power * state.a;
  }
  uint4* table = x.power_table + channel * 2 * STATE_TILES * 32;
  store_columns(table, lane, plain);
  store_columns(table + STATE_TILES * 32, lane, counted);
  x.weight_table[channel * 2 * STATES + lane] = narrow(state.into);
  x.weight_table[(channel * 2 + 1) * STATES + lane] = narrow(state.out);
}
