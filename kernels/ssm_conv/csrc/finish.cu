// From the parts that `gradients` wrote to the gradients of the parameters.

struct FinishArguments {
  Parameters parameters;
  const float* parts;  // (num_parts, channels, PART)
  REAL* ddelta;        // (channels)
  // (channels, state), as torch writes complex gradients: conjugate.
  ComplexParameter *dA, *dC, *dB;
  float* dD;           // (channels)
  long long num_parts;
};

constexpr int FINISH_WARPS = 4;

// Adds the parts, and what the lags within a row contribute. One warp for each channel, a lane for each state.
extern "C" __global__ void __launch_bounds__(32 * FINISH_WARPS) finish(const __grid_constant__ FinishArguments x) {
  __shared__ double lags[FINISH_WARPS][ROW_STEPS];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const long long channels = x.parameters.channels, channel = blockIdx.x * (long long)FINISH_WARPS + warp;
  if (channel >= channels) return;
  for (int lag = lane; lag < ROW_STEPS; lag += 32) {
    double total = 0.;
    for (long long part = 0; part < x.num_parts; ++part)
      total += x.parts[(part * channels + channel) * PART + 3 * 2 * STATES + lag];
    lags[warp][lag] = total;
    if (lag == 0) x.dD[channel] = (float)total;
  }
  __syncwarp();
  const Discrete state = discretize(x.parameters, channel, lane);
  double sums[6] = {};
  if (lane < x.parameters.state) {
    for (long long part = 0; part < x.num_parts; ++part)
      for (int i = 0; i < 6; ++i)
        sums[i] += x.parts[(part * channels + channel) * PART + (i / 2 * STATES + lane) * 2 + i % 2];
  }
  Complex power = {1., 0.}, near = {0., 0.}, counted = {0., 0.};
  for (int lag = 0; lag < ROW_STEPS; ++lag) {
    near = near + lags[warp][lag] * power;
    counted = counted + lag * lags[warp][lag] * power;
    power = power * state.a;
  }
  const Complex dinto = Complex{sums[0], sums[1]} + state.out * near;
  const Complex dout = Complex{sums[2], sums[3]} + state.into * near;
  double ddelta = 0.;
  if (lane < x.parameters.state) {
    // into = B (a - 1) / A, a = exp(rate), rate = delta A, out = 2 C.
    const Complex hold = (state.a - Complex{1., 0.}) / state.A;
    const Complex from_hold = dinto * state.B * state.a / state.A;
    const Complex drate = Complex{sums[4], sums[5]} + state.into * state.out * counted + from_hold;
    const Complex dA = (double)x.parameters.delta[channel] * drate - dinto * state.into / state.A;
    const Complex dB = dinto * hold;
    ddelta = (drate * state.A).re;
    const long long at = channel * x.parameters.state + lane;
    x.dA[at] = {(REAL)dA.re, (REAL)-dA.im};
    x.dC[at] = {(REAL)(2. * dout.re), (REAL)(-2. * dout.im)};
    if (x.dB != nullptr) x.dB[at] = {(REAL)dB.re, (REAL)-dB.im};
  }
  for (int step = 16; step > 0; step /= 2) ddelta += __shfl_xor_sync(0xffffffffu, ddelta, step);
  if (lane == 0) x.ddelta[channel] = (REAL)ddelta;
}
