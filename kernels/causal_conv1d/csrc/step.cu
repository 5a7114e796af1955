// One position of the causal convolution: the window of inputs moves on in place, and its sum with the taps comes out.
//
// A thread owns one channel of one sequence. The host defines: X_T WEIGHT_T BIAS_T STATE_T (f32, bf16 or f16), WIDTH,
// HAS_BIAS, HAS_SILU, THREADS.

constexpr int PAST = WIDTH - 1;

// Strides in bytes.
struct StepArguments {
  char* state;
  long long state_batch, state_channel, state_past;
  const char* x;
  long long x_batch, x_channel;
  const char *weight, *bias;
  char* y;  // dense (batch, channels)
  long long batch, channels;
};

extern "C" __global__ void __launch_bounds__(THREADS) step(const __grid_constant__ StepArguments a) {
  const long long entry = blockIdx.x * (long long)THREADS + threadIdx.x;
  if (entry >= a.batch * a.channels) return;
  const long long b = entry / a.channels, channel = entry % a.channels;
  char* state = a.state + b * a.state_batch + channel * a.state_channel;
  const WEIGHT_T* weight = reinterpret_cast<const WEIGHT_T*>(a.weight) + channel * WIDTH;

  STATE_T window[WIDTH];
#pragma unroll
  for (int i = 0; i < PAST; ++i) window[i] = *reinterpret_cast<const STATE_T*>(state + i * a.state_past);
  const float x = to_float(*reinterpret_cast<const X_T*>(a.x + b * a.x_batch + channel * a.x_channel));
  put(window + PAST, x);
  float y = HAS_BIAS ? to_float(reinterpret_cast<const BIAS_T*>(a.bias)[channel]) : 0.f;
#pragma unroll
  for (int i = 0; i < PAST; ++i) y = fmaf(to_float(weight[i]), to_float(window[i]), y);
  y = fmaf(to_float(weight[PAST]), x, y);
#pragma unroll
  for (int i = 0; i < PAST; ++i) *reinterpret_cast<STATE_T*>(state + i * a.state_past) = window[i + 1];
  put(reinterpret_cast<X_T*>(a.y) + entry, HAS_SILU ? y * sigmoid(y) : y);
}
