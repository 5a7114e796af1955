// Between the segments of a sequence.

struct CarryArguments {
  Parameters parameters;
  const float2* initial;  // (batch, channels, STATES) or none
  float2* states;         // (batch, segments, channels, STATES): ends of segments from nothing -> beginnings
  long long batch, num_segments, segment_steps;
};

// From the state that each segment but the last adds to the state that each begins with.
extern "C" __global__ void __launch_bounds__(256) carry(const __grid_constant__ CarryArguments x) {
  const long long at = blockIdx.x * 256ll + threadIdx.x, n = at % STATES;
  const long long channels = x.parameters.channels, channel = at / STATES % channels, b = at / STATES / channels;
  if (b >= x.batch) return;
  const Discrete space = discretize(x.parameters, channel, n);
  const float2 decay = narrow(exponential((double)x.segment_steps * space.rate));
  float2 state = x.initial != nullptr ? x.initial[at] : make_float2(0.f, 0.f);
  for (long long segment = 0; segment < x.num_segments; ++segment) {
    float2& place = x.states[((b * x.num_segments + segment) * channels + channel) * STATES + n];
    const float2 added = segment + 1 < x.num_segments ? place : make_float2(0.f, 0.f);
    place = state;
    state = multiply_add(decay, state, added);
  }
}
