// Linear scan, forward. Floor: device memory, the projections in and h out.

template <bool IS_WHOLE>  // none of the chunk's steps is beyond the end
__device__ __forceinline__ void scan(const Arguments& x, const Place& at) {
  const long long first = at.chunk * CHUNK + threadIdx.x / LANES * STEPS, nearest = min(first, x.length - 1);
  const int steps = IS_WHOLE ? STEPS : (int)max(0ll, min((long long)STEPS, x.length - first));
  Inputs raw[STEPS];
  {
    Walk<X0_T> x0(x.x0, at.mine, nearest, 1);
    Walk<X1_T> x1(x.x1, at.mine, nearest, 1);
    Walk<X2_T> x2(x.x2, at.mine, nearest, 1);
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
      raw[s].x0 = x0.load();
      raw[s].x1 = x1.load();
      if (KIND == MIN_LSTM) raw[s].x2 = x2.load();
      if (s + 1 < steps) x0.move(), x1.move(), x2.move();
    }
  }
  const Starts starts(x, at.mine, first, 1);

  Effect gated[STEPS][CHANNELS], total[CHANNELS];
  const auto step = [&](int s, int c) {
    float inputs[INPUTS];
    raw[s].take(c, inputs);
    const Effect step = effect(inputs);
    return Effect{starts.at(s) ? 0.f : step.keep, step.add};
  };
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) total[c] = {1.f, 0.f};
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
      gated[s][c] = step(s, c);
      if (s < steps) total[c] = total[c].then(gated[s][c]);
    }
  }
  float h[CHANNELS];
  enter(x.chain, at, x.channels, total, h);
  Walk<H_T> to(x.h, at.mine, first, 1);
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    if (KIND == LINEAR) raw[s].renew();
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) h[c] = (KIND == LINEAR ? step(s, c) : gated[s][c]).of(h[c]);
    if (s < steps) to.store(h);
    to.move();
  }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, MIN_BLOCKS) forward(const __grid_constant__ Arguments x) {
  const Place at = place(x);
  if ((at.chunk + 1) * CHUNK <= x.length) scan<true>(x, at);
  else scan<false>(x, at);
}
