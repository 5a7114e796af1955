// Linear scan, backward: a scan of the same kind from the end. With g_t the gradient at h_t and c_t = a_t g_t what reaches
// h_{t-1}:  c_t = a_t c_{t+1} + a_t dh_t,   g_t = dh_t + c_{t+1},   db_t = g_t,   da_t = g_t h_{t-1}.
//
// Floor: device memory, the projections (but for b), h and dh in, the gradients out.

template <bool IS_WHOLE>
__device__ __forceinline__ void scan_back(const Arguments& x, const Place& at) {
  // The steps of a thread run from `last` down, those beyond the end come first; the chain begins with the last chunk.
  const long long last = (x.chain.chunks - at.chunk) * CHUNK - 1 - threadIdx.x / LANES * STEPS;
  const int beyond = IS_WHOLE ? 0 : (int)max(0ll, min((long long)STEPS, last - x.length + 1));
  Inputs raw[STEPS];
  Vector<H_T> dh[STEPS], before[STEPS];
  {
    const long long nearest = min(last, x.length - 1);
    Walk<X0_T> x0(x.x0, at.mine, nearest, -1);
    Walk<X1_T> x1(x.x1, at.mine, nearest, -1);
    Walk<X2_T> x2(x.x2, at.mine, nearest, -1);
    Walk<H_T> from(x.dh, at.mine, nearest, -1), h(x.h, at.mine, max(0ll, nearest - 1), -1);
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
      raw[s].x0 = x0.load();
      raw[s].x1 = x1.load();
      if (KIND == MIN_LSTM) raw[s].x2 = x2.load();
      dh[s] = from.load();
      before[s] = h.load();
      if (s >= beyond) x0.move(), x1.move(), x2.move(), from.move();
      if (s >= beyond && last - s > 1) h.move();
    }
  }
  const Starts starts(x, at.mine, last, -1);

  float gated[STEPS][CHANNELS];
  Effect total[CHANNELS];
  const auto keep = [&](int s, int c) {
    float inputs[INPUTS];
    raw[s].take(c, inputs);
    return starts.at(s) ? 0.f : effect(inputs).keep;
  };
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) total[c] = {1.f, 0.f};
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
      gated[s][c] = keep(s, c);
      if (s >= beyond) total[c] = total[c].then({gated[s][c], gated[s][c] * to_float(dh[s].of[c])});
    }
  }
  float reaching[CHANNELS];
  enter(x.chain, at, x.channels, total, reaching);
  Walk<X0_T> dx0(x.dx0, at.mine, last, -1);
  Walk<X1_T> dx1(x.dx1, at.mine, last, -1);
  Walk<X2_T> dx2(x.dx2, at.mine, last, -1);
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    if (s >= beyond) {
      float gradients[INPUTS][CHANNELS];
      if (KIND == LINEAR) raw[s].x0.renew();
      else raw[s].renew();
      dh[s].renew();
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
        float inputs[INPUTS], dx[INPUTS];
        raw[s].take(c, inputs);
        const float g = to_float(dh[s].of[c]) + reaching[c];
        float h = to_float(before[s].of[c]);
        if (last == s) h = x.initial && c < at.mine.count ? x.initial[at.mine.row * x.channels + at.mine.first + c] : 0.f;
        differentiate(inputs, g, starts.at(s) ? 0.f : h, dx);
        const float kept = (KIND == LINEAR ? keep(s, c) : gated[s][c]) * g;
        reaching[c] = starts.at(s) ? 0.f : kept;
#pragma unroll
        for (int i = 0; i < INPUTS; ++i) gradients[i][c] = dx[i];
      }
      dx0.store(gradients[0]);
      dx1.store(gradients[1]);
      if (KIND == MIN_LSTM) dx2.store(gradients[INPUTS - 1]);
    }
    dx0.move(), dx1.move(), dx2.move();
  }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, MIN_BLOCKS) backward(const __grid_constant__ Arguments x) {
  const Place at = place(x);
  if ((x.chain.chunks - at.chunk) * CHUNK <= x.length) scan_back<true>(x, at);
  else scan_back<false>(x, at);
}
