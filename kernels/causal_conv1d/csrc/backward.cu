// Causal convolution, backward. With g the gradient of the plain sum, which is computed anew from x,
//
//   dx_t = sum_k weight_k g_{t + PAST - k},   dweight_k = sum_t g_t x_{t - PAST + k},   dbias = sum_t g_t.
//
// The walk is the forward's. Position t - PAST is finished where g_t is known, so a segment goes on PAST rows beyond its
// end, for its own dx alone. A block adds up its segments' dweight and dbias and writes one part; `reduce_parts` adds the
// parts. Every sum has a fixed order.
//
// Floor: the bytes of x, dy and dx once.

struct BackwardArguments {
  Inputs in;
  Rows dy, dx, dinitial;
  float* parts;  // (part, WIDTH + 1, channels)
};

constexpr int SUMS = WIDTH + HAS_BIAS;

// Of the taps of position s = t - PAST, those towards t reach as far as the next document: bit j of `cuts` says that one
// starts at s + 1 + j.
struct Reach {
  unsigned cuts = 0;

  __device__ __forceinline__ void step(bool starts) { cuts = cuts >> 1 | (starts ? 1u << PAST >> 1 : 0u); }
  __device__ __forceinline__ bool has(int distance) const { return !HAS_STARTS || !(cuts & ((1u << distance) - 1u)); }
};

struct Gradients {
  float of[PAST + ROWS][VECTOR];

  __device__ __forceinline__ float dx(const Taps& taps, const Reach& reach, int i, int v) const {
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) {
      if (reach.has(k)) sum = fmaf(taps.of[PAST - k][v], of[i + k][v], sum);
    }
    return sum;
  }

  __device__ __forceinline__ void move_on() {
#pragma unroll
    for (int i = 0; i < PAST; ++i) {
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) of[i][v] = of[ROWS + i][v];
    }
  }
};

// The gradient of the sum before the activation.
__device__ __forceinline__ float before_activation(float dy, float sum) {
#if HAS_SILU
  const float share = sigmoid(sum);
  return dy * share * fmaf(sum, 1.f - share, 1.f);
#else
  return dy;
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) backward(const __grid_constant__ BackwardArguments a) {
  extern __shared__ __align__(16) char memory[];
  const Place place(a.in);
  float dtaps[WIDTH][VECTOR] = {}, dbias[VECTOR] = {};
  if (place.channel < a.in.channels && place.first < place.end) {
    const int length = (int)a.in.length, x_step = (int)a.in.x.time, dy_step = (int)a.dy.time, dx_step = (int)a.dx.time;
    const Taps taps(a.in, place.channel);
    Walk walk(a.in, place);
    Gradients g = {};
    Reach reach;
    const char* x_at = at(a.in.x, place.b, place.first, place.channel);
    const char* dy_at = at(a.dy, place.b, place.first, place.channel);
    char* dx_at = at(a.dx, place.b, place.first - PAST, place.channel);  // of the row that is finished next

    auto enter = [&](int t, int i, const Raw<X_T, VECTOR>& x, const Raw<X_T, VECTOR>& dy) {
      const bool starts = walk.starts(t);
      if (starts) walk.forget(PAST + i);
      reach.step(starts);
      walk.put_row(PAST + i, x);
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) {
        const float gradient = before_activation(value(dy, v), taps.sum(walk.window + i, v));
        g.of[PAST + i][v] = t < length ? gradient : 0.f;
      }
    };
    auto finish = [&](int t, int i) {
      float dx[VECTOR];
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) dx[v] = g.dx(taps, reach, i, v);
      if (t >= place.first && t < place.end) {
        store<X_T, VECTOR>(dx_at + (long long)i * dx_step, dx);
      } else if (HAS_STATE && t < 0) {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
          put(reinterpret_cast<STATE_T*>(at(a.dinitial, place.b, PAST + t, place.channel + v)), dx[v]);
        }
      }
    };
    auto go = [&](int t) {
      Raw<X_T, VECTOR> x[ROWS], dy[ROWS];
      ask(x, x_at, x_step, length - 1 - t);
      ask(dy, dy_at, dy_step, length - 1 - t);
#pragma unroll
      for (int i = 0; i < ROWS; ++i) {
        enter(t + i, i, x[i], dy[i]);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
#pragma unroll
          for (int k = 0; k < WIDTH; ++k) dtaps[k][v] = fmaf(g.of[PAST + i][v], walk.window[i + k][v], dtaps[k][v]);
          dbias[v] += g.of[PAST + i][v];
        }
        finish(t + i - PAST, i);
      }
      walk.move_on();
      g.move_on();
      x_at += ROWS * a.in.x.time;
      dy_at += ROWS * a.dy.time;
      dx_at += ROWS * a.dx.time;
    };

    int t = place.first;
#pragma unroll 1
    for (; t < place.end; t += ROWS) go(t);
    if (PAST > 0) {
      Raw<X_T, VECTOR> x[PAST + !PAST], dy[PAST + !PAST];
      ask(x, x_at, x_step, length - 1 - t);
      ask(dy, dy_at, dy_step, length - 1 - t);
#pragma unroll
      for (int i = 0; i < PAST; ++i) {
        enter(t + i, i, x[i], dy[i]);
        finish(t + i - PAST, i);
      }
    }
  }

  // The block's part of the gradients of taps and bias.
  constexpr int BLOCK_CHANNELS = COLUMNS * VECTOR;
  float* sums = reinterpret_cast<float*>(memory);  // (SEGMENTS, SUMS, BLOCK_CHANNELS)
#pragma unroll
  for (int k = 0; k < SUMS; ++k) {
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
      sums[(place.segment * SUMS + k) * BLOCK_CHANNELS + place.column * VECTOR + v] = k < WIDTH ? dtaps[k % WIDTH][v] : dbias[v];
    }
  }
  __syncthreads();
  const long long block_channel = place.channel - place.column * VECTOR;
  for (int entry = threadIdx.x; entry < SUMS * BLOCK_CHANNELS; entry += THREADS) {
    float sum = 0.f;
#pragma unroll
    for (int segment = 0; segment < SEGMENTS; ++segment) sum += sums[segment * SUMS * BLOCK_CHANNELS + entry];
    const long long k = entry / BLOCK_CHANNELS, channel = block_channel + entry % BLOCK_CHANNELS;
    if (channel < a.in.channels) a.parts[(place.part * (long long)SUMS + k) * a.in.channels + channel] = sum;
  }
}

struct ReduceArguments {
  const float* parts;
  char *dweight, *dbias;
  long long num_parts, channels;
};

constexpr int REDUCE_COLUMNS = 32, REDUCE_ROWS = 16;

extern "C" __global__ void __launch_bounds__(REDUCE_COLUMNS* REDUCE_ROWS) reduce_parts(const __grid_constant__ ReduceArguments a) {
  __shared__ float sums[REDUCE_ROWS][REDUCE_COLUMNS];
  const int column = threadIdx.x % REDUCE_COLUMNS, row = threadIdx.x / REDUCE_COLUMNS;
  const long long entries = SUMS * a.channels, entry = blockIdx.x * (long long)REDUCE_COLUMNS + column;
  float sum = 0.f;
  if (entry < entries) {
#pragma unroll 8
    for (long long part = row; part < a.num_parts; part += REDUCE_ROWS) sum += a.parts[part * entries + entry];
  }
  sums[row][column] = sum;
  __syncthreads();
  if (row == 0 && entry < entries) {
    sum = 0.f;
#pragma unroll
    for (int i = 0; i < REDUCE_ROWS; ++i) sum += sums[i][column];
    const long long k = entry / a.channels, channel = entry % a.channels;
    if (k < WIDTH) {
      put(reinterpret_cast<WEIGHT_T*>(a.dweight) + channel * WIDTH + k, sum);
    } else {
      put(reinterpret_cast<BIAS_T*>(a.dbias) + channel, sum);
    }
  }
}
