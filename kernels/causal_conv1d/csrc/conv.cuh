// What the forward and the backward of the causal convolution share: who works on what, taps, and the window of inputs.
//
// A thread owns VECTOR neighbouring channels over `steps` positions and walks them ROWS at a go, its taps and the inputs
// that they still reach in registers. COLUMNS such threads stand side by side, THREADS / COLUMNS segments one after the
// other in time: one block.
//
// The host defines: X_T WEIGHT_T BIAS_T STATE_T (f32, bf16 or f16), WIDTH, HAS_BIAS, HAS_STATE, HAS_STARTS, HAS_SILU,
// VECTOR, ROWS, COLUMNS, THREADS, MIN_BLOCKS, LANES_IN_TIME (where neighbouring positions, not channels, are neighbours
// in memory).

constexpr int PAST = WIDTH - 1;
constexpr int SEGMENTS = THREADS / COLUMNS;
static_assert(ROWS >= PAST, "the rows of one go are all that the next one knows of the past");

// A tensor (batch, time, channel), strides in bytes; the host sees to it that those of time fit an int.
struct Rows {
  char* data;
  long long batch, time, channel;
};

struct Inputs {
  Rows x, initial;
  const char *weight, *bias;
  const unsigned char* starts;
  long long starts_batch, starts_time;
  long long length, channels, steps, blocks_across, blocks_along;
};

struct Place {
  int column, segment;
  unsigned part;  // of the sums over time: the block among those of its channels
  long long b, channel;
  int first, end;

  __device__ __forceinline__ explicit Place(const Inputs& a) {
    column = LANES_IN_TIME ? threadIdx.x / SEGMENTS : threadIdx.x % COLUMNS;
    segment = LANES_IN_TIME ? threadIdx.x % SEGMENTS : threadIdx.x / COLUMNS;
    part = blockIdx.x / (unsigned)a.blocks_across;
    const unsigned across = blockIdx.x - part * (unsigned)a.blocks_across;
    b = part / (unsigned)a.blocks_along;
    const unsigned along = part - (unsigned)b * (unsigned)a.blocks_along;
    channel = (across * (long long)COLUMNS + column) * VECTOR;
    const long long from = (along * (long long)SEGMENTS + segment) * a.steps;
    first = (int)min(from, a.length);
    end = (int)min(from + a.steps, a.length);
  }
};

__device__ __forceinline__ char* at(const Rows& rows, long long b, long long t, long long channel) {
  return rows.data + b * rows.batch + t * rows.time + channel * rows.channel;
}

// Rows 0, 1, … from `from` on; beyond row `last`, which may lie behind, that one again: a load without a condition is
// not waited for.
template <int COUNT>
__device__ __forceinline__ void ask(Raw<X_T, VECTOR> (&raw)[COUNT], const char* from, int step, int last) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) raw[i] = load<X_T, VECTOR>(from + (long long)min(i, last) * step);
}

constexpr int TAPS_AT_ONCE = WIDTH % 4 == 0 ? 4 : WIDTH % 2 == 0 ? 2 : 1;

struct Taps {
  float of[WIDTH][VECTOR], bias[VECTOR];

  // The weight is dense, (channels, width), and like the bias aligned to what is read at once.
  __device__ __forceinline__ Taps(const Inputs& a, long long channel) {
    const char* weight_at = a.weight + channel * (WIDTH * (long long)sizeof(WEIGHT_T));
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
#pragma unroll
      for (int first = 0; first < WIDTH; first += TAPS_AT_ONCE) {
        const auto raw = load<WEIGHT_T, TAPS_AT_ONCE>(weight_at + (v * WIDTH + first) * sizeof(WEIGHT_T));
#pragma unroll
        for (int k = 0; k < TAPS_AT_ONCE; ++k) of[first + k][v] = value(raw, k);
      }
    }
    Raw<BIAS_T, VECTOR> raw = {};
    if (HAS_BIAS) raw = load<BIAS_T, VECTOR>(a.bias + channel * (long long)sizeof(BIAS_T));
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) bias[v] = value(raw, v);
  }

  // The sum of taps that ends at window[PAST].
  __device__ __forceinline__ float sum(const float (*window)[VECTOR], int v) const {
    float y = bias[v];
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) y = fmaf(of[k][v], window[k][v], y);
    return y;
  }
};

// Walks a thread's positions: `window[PAST + i]` is the input of row i, before it those that its taps reach.
struct Walk {
  const Inputs& a;
  const unsigned char* starts_at;
  float window[PAST + ROWS][VECTOR];

  __device__ __forceinline__ Walk(const Inputs& inputs, const Place& place) : a(inputs) {
    const char* x_at = at(a.x, place.b, 0, place.channel);
    starts_at = HAS_STARTS ? a.starts + place.b * a.starts_batch : nullptr;
#pragma unroll
    for (int i = 0; i < PAST; ++i) {
      const int t = place.first - PAST + i;
      if (t >= 0) {
        if (starts(t)) forget(i);
        put_row(i, load<X_T, VECTOR>(x_at + t * a.x.time));
      } else {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
          window[i][v] = HAS_STATE ? to_float(*reinterpret_cast<const STATE_T*>(
                                         at(a.initial, place.b, PAST + t, place.channel + v)))
                                   : 0.f;
        }
      }
    }
  }

  __device__ __forceinline__ bool starts(int t) const {
    return HAS_STARTS && t < a.length && starts_at[t * a.starts_time];
  }

  // Row `end` is the first of a document: what stands before it is out of reach.
  __device__ __forceinline__ void forget(int end) {
#pragma unroll
    for (int i = 0; i < PAST + ROWS; ++i) {
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) {
        if (i < end && i >= end - PAST) window[i][v] = 0.f;
      }
    }
  }

  __device__ __forceinline__ void put_row(int i, const Raw<X_T, VECTOR>& raw) {
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) window[i][v] = value(raw, v);
  }

  // The last rows become the first ones of the next go.
  __device__ __forceinline__ void move_on() {
#pragma unroll
    for (int i = 0; i < PAST; ++i) {
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) window[i][v] = window[ROWS + i][v];
    }
  }
};
