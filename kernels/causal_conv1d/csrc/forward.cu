// Causal convolution, forward: y_t = silu(sum_k weight_k x_{t - PAST + k} + bias), channel by channel.
//
// Floor: the bytes of x once and of y once.

struct ForwardArguments {
  Inputs in;
  Rows y;
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) forward(const __grid_constant__ ForwardArguments a) {
  const Place place(a.in);
  if (place.channel >= a.in.channels || place.first >= place.end) return;
  const int x_step = (int)a.in.x.time, y_step = (int)a.y.time;
  const Taps taps(a.in, place.channel);
  Walk walk(a.in, place);
  const char* x_at = at(a.in.x, place.b, place.first, place.channel);
  char* y_at = at(a.y, place.b, place.first, place.channel);

  auto go = [&](int t) {
    Raw<X_T, VECTOR> x[ROWS];
    ask(x, x_at, x_step, place.end - 1 - t);
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      if (walk.starts(t + i)) walk.forget(PAST + i);
      walk.put_row(PAST + i, x[i]);
      float y[VECTOR];
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) {
        y[v] = taps.sum(walk.window + i, v);
        if (HAS_SILU) y[v] *= sigmoid(y[v]);
      }
      if (t + i < place.end) store<X_T, VECTOR>(y_at + (long long)i * y_step, y);
    }
    walk.move_on();
    x_at += ROWS * a.in.x.time;
    y_at += ROWS * a.y.time;
  };
#pragma unroll 1
  for (int t = place.first; t < place.end; t += ROWS) go(t);
}
