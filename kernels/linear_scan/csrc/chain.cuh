// What the forward and the backward linear scan share: h_t = a_t h_{t-1} + b_t in one pass over memory.
//
// Mapping: a lane has CHANNELS neighbouring channels and STEPS consecutive steps, a warp 32 lanes across the channels,
// a block WARPS warps one after the other in time (a chunk). Everything is loaded at once, into registers. A thread
// knows what its steps make of any state before them (a -> the product of a's, b -> what they make of zero); threads
// tell their warps' successors through shared memory, blocks tell their successors through device memory.
//
// The state before a block is a fixed expression, so that results repeat bit for bit: blocks come in groups of GROUP
// chunks; a block asks for the state before its group, which the last block of the group before has told, and for the
// effects of the chunks before it in its group, all at once. Hence no more than one exchange for every GROUP chunks
// lies on the path from the first step to the last. Blocks are numbered in the order of time, which is the order in which
// they start: whoever is waited for is running. A note is 8 bytes, written and read as one word, and all ones until then.

constexpr int LINEAR = 0, MIN_GRU = 1, MIN_LSTM = 2;
constexpr int INPUTS = KIND == MIN_LSTM ? 3 : 2;
constexpr int CHUNK = WARPS * STEPS;
constexpr int LANES = 32;
constexpr int TILE = LANES * CHANNELS;
constexpr float LOG2_E = 1.4426950408889634f;

typedef unsigned long long Note;
constexpr Note UNWRITTEN = ~0ull;

struct Rows {
  char* data;
  long long batch, time, last;  // strides in elements
};

struct Chain {
  Note* notes;         // the states before groups, then the chunks' effects
  const float* begin;  // (batch, channels), or null for zero
  float* end;
  long long tiles, chunks;
};

struct Arguments {
  Rows x0, x1, x2, h;
  Rows dx0, dx1, dx2, dh;
  Chain chain;
  const float* initial;
  const unsigned char* starts;
  long long starts_batch, starts_time;
  long long batch, length, channels;
};

// What steps do to a state: h -> keep h + add.
struct Effect {
  float keep, add;
  // Where a document starts, not even what is not finite comes through.
  __device__ __forceinline__ float of(float h) const { return HAS_STARTS && keep == 0.f ? add : fmaf(keep, h, add); }
  __device__ __forceinline__ Effect then(Effect later) const {
    return {HAS_STARTS && later.keep == 0.f ? 0.f : keep * later.keep, later.of(add)};
  }
};

template <typename T>
union alignas(sizeof(T) * CHANNELS) Vector {
  T of[CHANNELS];
  unsigned words[sizeof(T) * CHANNELS / 4];

  // To the compiler these are other numbers from here on: it converts them again where they are used, rather than keep
  // what it converted before in twice as many registers.
  __device__ __forceinline__ void renew() {
#pragma unroll
    for (int i = 0; i < sizeof(T) * CHANNELS / 4; ++i) asm volatile("" : "+r"(words[i]));
  }
};

// A lane's channels. Beyond the last channel it reads others and stores nothing.
struct LaneChannels {
  long long row, first;
  int count;
};

// A lane's channels of one row after the other.
template <typename T>
struct Walk {
  T* at;
  long long stride, last;
  int count;

  __device__ __forceinline__ Walk(const Rows& rows, const LaneChannels& mine, long long t, int direction)
      : at(reinterpret_cast<T*>(rows.data) + mine.row * rows.batch + t * rows.time + mine.first * rows.last),
        stride(direction * rows.time), last(rows.last), count(mine.count) {}

  __device__ __forceinline__ void move() { at += stride; }

  __device__ __forceinline__ Vector<T> load() const {
    if (VECTORS) return *reinterpret_cast<const Vector<T>*>(at);
    Vector<T> values;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) values.of[c] = at[min(c, max(count - 1, 0)) * last];
    return values;
  }

  __device__ __forceinline__ void store(const float (&values)[CHANNELS]) const {
    Vector<T> packed;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) put(&packed.of[c], values[c]);
    if (VECTORS) {
      if (count > 0) *reinterpret_cast<Vector<T>*>(at) = packed;
    } else {
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c)
        if (c < count) at[c * last] = packed.of[c];
    }
  }
};

// Gates.

struct Shares {
  float stays, enters;
};

// 1 - sigmoid(x) and sigmoid(x), both without cancellation.
__device__ __forceinline__ Shares sigmoid_shares(float x) {
  const float e = ex2(-fabsf(x) * LOG2_E), larger = reciprocal(1.f + e), smaller = e * larger;
  return x < 0.f ? Shares{larger, smaller} : Shares{smaller, larger};
}

// f / (f + i) and i / (f + i) of f = sigmoid(forget) and i = sigmoid(input), multiplied by what lets nothing overflow:
// 1 / f = 1 + e^-forget and 1 / i, each over max(1, e^-forget, e^-input).
__device__ __forceinline__ Shares gate_shares(float forget, float input) {
  const float most = fmaxf(0.f, fmaxf(-forget, -input)), one = ex2(-most * LOG2_E);
  const float stays = one + ex2((-input - most) * LOG2_E), enters = one + ex2((-forget - most) * LOG2_E);
  const float scale = reciprocal(stays + enters);
  return {stays * scale, enters * scale};
}

__device__ __forceinline__ Shares shares(float x0, float x1) {
  return KIND == MIN_GRU ? sigmoid_shares(x0) : gate_shares(x0, x1);
}

struct Candidate {
  float value, slope;
};

__device__ __forceinline__ Candidate candidate(float x) {
  if (!POSITIVE) return {x, 1.f};
  const Shares s = sigmoid_shares(x);
  return x < 0.f ? Candidate{s.enters, s.enters * s.stays} : Candidate{x + 0.5f, 1.f};
}

__device__ __forceinline__ Effect effect(const float (&x)[INPUTS]) {
  if (KIND == LINEAR) return {x[0], x[1]};
  const Shares s = shares(x[0], x[1]);
  return {s.stays, s.enters * candidate(x[INPUTS - 1]).value};
}

// The gradients of the inputs, from the gradient g at h_t = a h + b.
__device__ __forceinline__ void differentiate(const float (&x)[INPUTS], float g, float h, float (&dx)[INPUTS]) {
  if (KIND == LINEAR) {
    dx[0] = g * h;
    dx[1] = g;
    return;
  }
  const Shares s = shares(x[0], x[1]);
  const Candidate value = candidate(x[INPUTS - 1]);
  const float dshare = g * (value.value - h) * s.stays * s.enters;  // at the logit of what enters
  dx[INPUTS - 1] = g * s.enters * value.slope;
  if (KIND == MIN_GRU) {
    dx[0] = dshare;
  } else {
    dx[0] = -dshare * sigmoid_shares(x[0]).stays;
    dx[1] = dshare * sigmoid_shares(x[1]).stays;
  }
}

// Notes.

__device__ __forceinline__ void tell(Note* note, float first, float second) {
  Note word = (Note)__float_as_uint(first) << 32 | __float_as_uint(second);
  if (word == UNWRITTEN) word = 0x7fffffff7fffffffull;  // two other NaNs
  *(volatile Note*)note = word;
}

__device__ __forceinline__ Note look(const Note* note) { return *(const volatile Note*)note; }

// What is told there, perhaps already seen.
__device__ __forceinline__ Effect ask(const Note* note, Note seen) {
  while (seen == UNWRITTEN) seen = look(note);
  return {__uint_as_float((unsigned)(seen >> 32)), __uint_as_float((unsigned)seen)};
}

struct Place {
  LaneChannels mine;
  long long tile;   // batch row and block of channels
  long long chunk;  // in the order in which the chain runs
};

__device__ __forceinline__ Place place(const Arguments& x) {
  const long long tile = blockIdx.x % x.chain.tiles, tiles_a_row = x.chain.tiles / x.batch;
  const long long first = tile % tiles_a_row * TILE + threadIdx.x % LANES * CHANNELS;
  const int count = (int)max(0ll, min((long long)CHANNELS, x.channels - first));
  return {{tile / tiles_a_row, count ? first : max(0ll, x.channels - CHANNELS), count}, tile, blockIdx.x / x.chain.tiles};
}

// The state before this thread's steps, from their effects and everyone else's.
__device__ __forceinline__ void enter(
    const Chain& chain, const Place& at, long long channels, const Effect (&effects)[CHANNELS], float (&h)[CHANNELS]) {
  __shared__ Effect of_warps[WARPS][CHANNELS][LANES], before_warps[WARPS][CHANNELS][LANES];
  __shared__ float before_group[CHANNELS][LANES];
  const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, position = (int)(at.chunk % GROUP);
  const long long groups = (chain.chunks + GROUP - 1) / GROUP, group = at.chunk / GROUP;
  const long long state = at.mine.row * channels + at.mine.first;
  Note* of_states = chain.notes;
  Note* of_chunks = of_states + groups * chain.tiles * TILE;
  const auto word = [&](long long number, int c) { return ((number * chain.tiles + at.tile) * CHANNELS + c) * LANES + lane; };

#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) of_warps[warp][c][lane] = effects[c];
  __syncthreads();
  Effect whole[CHANNELS], before[CHANNELS];
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    whole[c] = before[c] = {1.f, 0.f};
#pragma unroll 2
    for (int w = 0; w < WARPS; ++w) {
      if (w == warp) before[c] = whole[c];
      whole[c] = whole[c].then(of_warps[w][c][lane]);
    }
    if (warp == 0 && position < GROUP - 1) tell(of_chunks + word(at.chunk, c), whole[c].keep, whole[c].add);
  }

  // Every warp asks for its share of the chunks before this one, and the last warp for the state. All looks go out
  // before the first answer is waited for.
  constexpr int SHARE = GROUP / WARPS;
  const bool asks_state = warp == WARPS - 1 && group > 0;
  Note seen[SHARE][CHANNELS], seen_state[CHANNELS];
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    if (asks_state) seen_state[c] = look(of_states + word(group, c));
#pragma unroll
    for (int i = 0; i < SHARE; ++i)
      if (warp * SHARE + i < position) seen[i][c] = look(of_chunks + word(group * GROUP + warp * SHARE + i, c));
  }
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    Effect sum = {1.f, 0.f};
#pragma unroll
    for (int i = 0; i < SHARE; ++i)
      if (warp * SHARE + i < position)
        sum = sum.then(ask(of_chunks + word(group * GROUP + warp * SHARE + i, c), seen[i][c]));
    before_warps[warp][c][lane] = sum;
    if (warp == WARPS - 1) {
      float begin = 0.f;
      if (asks_state) begin = ask(of_states + word(group, c), seen_state[c]).keep;
      else if (chain.begin && c < at.mine.count) begin = chain.begin[state + c];
      before_group[c][lane] = begin;
    }
  }
  __syncthreads();
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
    h[c] = before_group[c][lane];
#pragma unroll 2
    for (int w = 0; w < WARPS; ++w) h[c] = before_warps[w][c][lane].of(h[c]);
    if (warp == 0) {
      const float end = whole[c].of(h[c]);
      if (at.chunk + 1 == chain.chunks) {
        if (c < at.mine.count) chain.end[state + c] = end;
      } else if (position == GROUP - 1) {
        tell(of_states + word(group + 1, c), end, 0.f);
      }
    }
    h[c] = before[c].of(h[c]);
  }
}

struct Inputs {
  Vector<X0_T> x0;
  Vector<X1_T> x1;
  Vector<X2_T> x2;

  __device__ __forceinline__ void renew() {
    x0.renew();
    x1.renew();
    if (KIND == MIN_LSTM) x2.renew();
  }
  __device__ __forceinline__ void take(int c, float (&x)[INPUTS]) const {
    x[0] = to_float(x0.of[c]);
    x[1] = to_float(x1.of[c]);
    if (KIND == MIN_LSTM) x[INPUTS - 1] = to_float(x2.of[c]);
  }
};

// Whether documents start at the steps of a thread, which run from `first` in either direction: a bit for each.
struct Starts {
  unsigned bits;

  __device__ __forceinline__ Starts(const Arguments& x, const LaneChannels& mine, long long first, int direction) : bits(0) {
    if (!HAS_STARTS) return;
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
      const long long t = max(0ll, min(first + direction * s, x.length - 1));
      bits |= (unsigned)(x.starts[mine.row * x.starts_batch + t * x.starts_time] != 0) << s;
    }
  }
  __device__ __forceinline__ bool at(int step) const { return HAS_STARTS && (bits >> step & 1); }
};
