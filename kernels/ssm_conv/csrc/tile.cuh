// How a sequence lies in shared memory while the kernels work on it.
//
// A tile is 16 rows of SUBS chunks, one after the other in time: step = ((2 pair + odd) SUBS + sub) 16 + 8 half +
// 2 place + end. A block holds the tiles of WARPS neighbouring channels. Its threads bring them in, four channels at a
// time and in the background, and split what they brought so that lane 4 pair + place of the warp that owns a channel
// finds the left factor of a matrix product in one word of 16 bytes, [2 half + odd], and its low part in another. Output
// takes their place, the first of two steps that of the high part.

constexpr int ROWS = 16;
constexpr int TILE = ROWS * ROW_STEPS;
constexpr int THREADS = 32 * WARPS;
constexpr int QUADS = WARPS / 4;
constexpr int QUAD_BYTES = 4 * sizeof(IN_T);

struct alignas(QUAD_BYTES) Quad { IN_T of[4]; };
struct alignas(16) Words { unsigned of[4]; };
struct Chunk { Words high[32], low[32]; };
struct Channel {
  Chunk chunks[SUBS];
  Words unused;  // Four channels are 16 banks apart.
};
struct Incoming { Quad steps[2 * SUBS][THREADS]; };

// What one thread brings in and takes out: two steps of four channels in every chunk of one row.
struct Place {
  int quad, odd, pair, half, place;
  __device__ __forceinline__ Place() {
    quad = threadIdx.x % QUADS;
    const int i = threadIdx.x / QUADS;
    place = i & 3;
    odd = i >> 2 & 1;
    half = i >> 3 & 1;
    pair = i >> 4;
  }
  __device__ __forceinline__ int first_step() const { return (2 * pair + odd) * ROW_STEPS + 8 * half + 2 * place; }
  __device__ __forceinline__ int lane() const { return 4 * pair + place; }
  __device__ __forceinline__ int word() const { return 2 * half + odd; }
};

// A thread's steps of one tile after the other in device memory, forward or backward in time.
template <class T, bool BACKWARD>
struct Stream {
  T* at;
  long long time, bound;
  int channels;

  // Of the tile `tile`, counted from the direction's beginning; backward, the first tile begins with steps that do not
  // exist, so that the tiles are those of the forward direction.
  __device__ __forceinline__ Stream(T* sequence, long long time_stride, long long length, long long num_channels,
                                    long long first_channel, const Place& place, long long tile) {
    const long long num_steps = (length + TILE - 1) / TILE * TILE;
    const long long step = tile * TILE + place.first_step();
    const long long channel = first_channel + 4 * place.quad;
    time = BACKWARD ? -time_stride : time_stride;
    at = sequence + channel + (BACKWARD ? num_steps - 1 - step : step) * time_stride;
    bound = BACKWARD ? num_steps - length - step : length - step;
    channels = (int)min(num_channels - channel, 4ll);
  }
  __device__ __forceinline__ bool exists(int k) const { return BACKWARD ? k >= bound : k < bound; }
  __device__ __forceinline__ void next_tile() {
    at += TILE * time;
    bound -= TILE;
  }

  __device__ __forceinline__ void fetch(Incoming& incoming) const {
#pragma unroll
    for (int item = 0; item < 2 * SUBS; ++item) {
      const int k = item / 2 * STEPS + item % 2;
      Quad& to = incoming.steps[item][threadIdx.x];
#if VECTOR
      copy_in_background<QUAD_BYTES>(&to, at + k * time, exists(k) && channels > 0);
#else
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        put(&to.of[c], 0.f);
        if (exists(k) && c < channels) to.of[c] = at[k * time + c];
      }
#endif
    }
  }

  __device__ __forceinline__ void store(int k, const Quad& values) const {
    if (!exists(k)) return;
#if VECTOR
    if (channels > 0) *reinterpret_cast<Quad*>(at + k * time) = values;
#else
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (c < channels) at[k * time + c] = values.of[c];
#endif
  }
};

// Lays out what this thread brought; REVERSED within each row.
template <bool REVERSED>
__device__ __forceinline__ void unpack(const Incoming& incoming, Channel* channels, const Place& place) {
#pragma unroll
  for (int sub = 0; sub < SUBS; ++sub) {
    const Quad first = incoming.steps[2 * sub][threadIdx.x], second = incoming.steps[2 * sub + 1][threadIdx.x];
    const int lane = REVERSED ? 4 * place.pair + 3 - place.place : place.lane();
    const int word = REVERSED ? place.word() ^ 2 : place.word();
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      Chunk& chunk = channels[4 * place.quad + c].chunks[REVERSED ? SUBS - 1 - sub : sub];
      const float low_end = to_float((REVERSED ? second : first).of[c]), high_end = to_float((REVERSED ? first : second).of[c]);
      const unsigned high = pack(low_end, high_end);
      chunk.high[lane].of[word] = high;
      if (HAS_LOW) chunk.low[lane].of[word] = pack(low_end - first_of(high), high_end - second_of(high));
    }
  }
}

__device__ __forceinline__ float2 shuffle_up(float2 x, int lanes) {
  return make_float2(__shfl_up_sync(0xffffffffu, x.x, lanes), __shfl_up_sync(0xffffffffu, x.y, lanes));
}
__device__ __forceinline__ float2 shuffle_down(float2 x, int lanes) {
  return make_float2(__shfl_down_sync(0xffffffffu, x.x, lanes), __shfl_down_sync(0xffffffffu, x.y, lanes));
}

struct alignas(16) Powers { float2 of[4]; };  // of a row: 1, 2, 4, 8

// From what a lane's two rows, first and second in the direction of the scan, add to a state to what they start with.
// Returns the state after the second row; in the last place that is the one after the tile.
template <bool UP>
__device__ __forceinline__ float2 scan_rows(float2& first, float2& second, float2 carry, const Powers& power, int pair) {
  const int place = UP ? pair : 7 - pair;
  float2 sum = multiply_add(power.of[0], first, second);
  if (place == 0) sum = multiply_add(power.of[1], carry, sum);
#pragma unroll
  for (int step = 0; step < 3; ++step) {
    const int reach = 1 << step;
    const float2 before = UP ? shuffle_up(sum, 4 * reach) : shuffle_down(sum, 4 * reach);
    if (place >= reach) sum = multiply_add(power.of[1 + step], before, sum);
  }
  float2 start = UP ? shuffle_up(sum, 4) : shuffle_down(sum, 4);
  if (place == 0) start = carry;
  second = multiply_add(power.of[0], start, first);
  first = start;
  return sum;
}
