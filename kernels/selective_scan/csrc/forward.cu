// Selective scan, forward.
//
//   h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t,    y_t = (<C_t, h_t> + D u_t) silu(z_t)
//
// Mapping: a warp owns a tile of 16 rows and walks 8 steps of it at a go, states in registers. Lane 4 place + quarter
// has rows place and 8 + place of the tile and in each of them STATES consecutive states. This is how the tensor cores
// lay out a matrix of rows x states, and two of the three products of a step are theirs: what enters the states,
// (rows x 1) (1 x states), and what is read of them, (rows x states) (states x 8 steps), of which one column counts.
// Neither needs shared memory: the operands lie in the lanes as they come from device memory, the products arrive where
// they are used. Only the step sizes, which a lane wants of both its rows and all 8 steps, go through shared memory.
//
// Many channels (SEGMENTS = 1): the rows are 16 channels, and a warp walks all of time.
//
// Few channels: SEGMENTS warps share 8 channels and hand the state round in a ring. A warp takes 16 consecutive steps,
// as two halves of 8 that are the two sets of rows. It scans both from zero, keeps the products of their decays, and
// reads out what it has. When the state of the warp before it arrives it hands on its own, and only then adds that
// state's share of its outputs: <C_t, product of the decays since the half's start x state there>.
//
// COLUMNS such warps or rings make a block. More than 16 states are groups of 16, one after the other (rings only).
//
// Floor: (N + 3) exponentials and reciprocals for every (batch, step, channel), 16 a clock on every multiprocessor.
// Device memory: u, delta, z, y once each.

struct ForwardArguments {
  Rows u, delta, B, C, z, y;
  const float *A, *D, *bias, *initial;
  const unsigned char* starts;
  long long starts_batch, starts_time;
  float *final, *checkpoints;
  long long batch, length, channels, state;
};

constexpr int WARPS = SEGMENTS * COLUMNS;
constexpr int HALVES = SEGMENTS == 1 ? 1 : 2;
constexpr int ROW_CHANNELS = 2 / HALVES;  // of the two rows of a lane
constexpr int TILE_CHANNELS = CHANNELS * ROW_CHANNELS, TILE_STEPS = STEPS * HALVES;
constexpr int PRODUCTS = (STATES + 1) / 2;  // one matrix product has two states of a lane's row
constexpr bool PAIRED = VECTOR_PAIRS && ROW_CHANNELS == 2;
constexpr float UNTRUNCATE = SPLIT_OPERANDS ? 1.f : 1.f + MEAN_TRUNCATION;
static_assert(GROUPS == 1 || SEGMENTS > 1, "one warp keeps the states of one group in registers");
static_assert(SEGMENTS == 1 || WARPS <= 16, "a block has 16 named barriers");

// Step sizes by row and step; the gap after four rows keeps the accesses free of bank conflicts.
constexpr int ROWS_SIZE = CHANNELS * STEPS + 4;
__device__ __forceinline__ int row_at(int place) { return STEPS * place + 4 * (place >> 2); }

// Step t of what begins at `from`. WIDE_STEPS says that the bytes between two steps may not fit 32 bits.
__device__ __forceinline__ char* step_at(const char* from, const Rows& rows, int t) {
#if WIDE_STEPS
  return const_cast<char*>(from) + t * rows.step;
#else
  // The low word as it lies there: cut out of the whole, the compiler would multiply by the rest of it, too.
  return multiply_add_wide(from, t, *reinterpret_cast<const unsigned*>(&rows.step));
#endif
}

struct WarpMemory {
  float delta[2][ROWS_SIZE];
  float cut[TILE_STEPS];
};

// What the warps of a ring leave for the next one, by receiver. A carry is overwritten when the ring has been round, so
// it has been read. Of one group a named barrier tells, the quickest there is. Of several the giver may be groups ahead
// of the receiver, which takes a barrier for each; none is ever more than one phase ahead of who waits for it.
struct Ring {
  States carry[SEGMENTS][GROUPS][32];
  alignas(16) PhaseBarrier has_carry[SEGMENTS][GROUPS];
};

// The states of a lane in its two rows.
struct RowStates {
  States of[2];
};

__device__ __forceinline__ States multiply(const States& factor, const States& states) {
  States result;
#pragma unroll
  for (int k = 0; k < STATES; ++k) result.of[k] = factor.of[k] * states.of[k];
  return result;
}

__device__ __forceinline__ States multiply_add(const States& factor, const States& states, const States& summand) {
  States result;
#pragma unroll
  for (int k = 0; k < STATES; ++k) result.of[k] = fmaf(factor.of[k], states.of[k], summand.of[k]);
  return result;
}

__device__ __forceinline__ float rounded(float x) { return __uint_as_float(__float_as_uint(x) + 0x1000u); }

template <typename T>
__device__ __forceinline__ Raw<T, 1> load_one(const char* from) {
  if constexpr (sizeof(T) == 4) {
    return {*reinterpret_cast<const unsigned*>(from)};
  } else {
    return {*reinterpret_cast<const unsigned short*>(from)};
  }
}

// COUNT neighbouring states of B or C.
template <typename T, int COUNT>
__device__ __forceinline__ Raw<T, COUNT> load_neighbours(const char* from, long long stride, int remaining) {
#if VECTOR_BC
  if constexpr (COUNT == 1) {
    return load_one<T>(from);
  } else {
    return *reinterpret_cast<const Raw<T, COUNT>*>(from);
  }
#else
  Raw<T, COUNT> raw = {};
#pragma unroll
  for (int k = 0; k < COUNT; ++k) {
    if (k < remaining) set_bits(raw, k, from + k * stride * (long long)sizeof(T));
  }
  return raw;
#endif
}

// The items of a lane: two rows, two steps.
template <typename T>
struct RawItems {
  Raw<T, PAIRED ? 2 : 1> raw[PAIRED ? 1 : 2][2];
};

template <typename T>
__device__ __forceinline__ RawItems<T> load_items(const Rows& rows, const char* from, const int (&times)[2][2],
                                                  int num_channels) {
  RawItems<T> items;
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    if constexpr (PAIRED) {
      items.raw[0][step] = *reinterpret_cast<const Raw<T, 2>*>(step_at(from, rows, times[0][step]));
    } else {
      const long long second = ROW_CHANNELS == 2 && num_channels > 1 ? rows.last * (long long)sizeof(T) : 0;
      items.raw[0][step] = load_one<T>(step_at(from, rows, times[0][step]));
      items.raw[1][step] = load_one<T>(step_at(from, rows, times[1][step]) + second);
    }
  }
  return items;
}

template <typename T>
__device__ __forceinline__ float item(const RawItems<T>& items, int row, int step) {
  return PAIRED ? value(items.raw[0][step], row) : value(items.raw[PAIRED ? 0 : row][step], 0);
}

// What enters the states of both rows in step i: inflow x B. Only the lanes that own a row's item of step i give an
// inflow, and the B of that item's time.
__device__ __forceinline__ RowStates entering(const float (&inflow)[2][2], const float (&B)[2][HALVES][PRODUCTS], int i,
                                              const int (&pair)[2]) {
  const float first = pair[0] == i / 2 ? inflow[0][i % 2] : 0.f, second = pair[1] == i / 2 ? inflow[1][i % 2] : 0.f;
  RowStates states;
#pragma unroll
  for (int j = 0; j < PRODUCTS; ++j) {
    const float entry = B[i % 2][HALVES == 1 ? 0 : i / 4][j];
    float sums[4] = {0.f, 0.f, 0.f, 0.f};
#if SPLIT_OPERANDS
    multiply_add(sums, first - high_part(first), second - high_part(second), high_part(entry));
    multiply_add(sums, high_part(first), high_part(second), entry - high_part(entry));
    multiply_add(sums, high_part(first), high_part(second), high_part(entry));
#else
    multiply_add(sums, first, second, entry);
#endif
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
      for (int k = 0; k < STATES / PRODUCTS; ++k) states.of[row].of[PRODUCTS * k + j] = sums[2 * row + k];
    }
  }
  return states;
}

enum class Part { WHOLE, HIGH, LOW };
template <Part PART>
__device__ __forceinline__ float part(float x) {
  return PART == Part::WHOLE ? x : PART == Part::HIGH ? high_part(x) : x - high_part(x);
}

// sums += h C for one or two states of every lane.
template <Part OF_H, Part OF_C>
__device__ __forceinline__ void add_product(float (&sums)[4], const RowStates& h, const States& C, int k) {
  if constexpr (STATES == 1) {
    multiply_add(sums, part<OF_H>(h.of[0].of[k]), part<OF_H>(h.of[1].of[k]), part<OF_C>(C.of[k]));
  } else {
    const int l = PRODUCTS + k;
    multiply_add(sums, part<OF_H>(h.of[0].of[k]), part<OF_H>(h.of[1].of[k]), part<OF_H>(h.of[0].of[l]),
                 part<OF_H>(h.of[1].of[l]), part<OF_C>(C.of[k]), part<OF_C>(C.of[l]));
  }
}

// sums += <C, h> of step i, in the lanes that own its items. C is that of the lane's place in the product.
__device__ __forceinline__ void read_states(float (&sums)[4], int i, const States (&C)[HALVES], const RowStates& h) {
#pragma unroll
  for (int j = 0; j < PRODUCTS; ++j) {
#if SPLIT_OPERANDS
    add_product<Part::LOW, Part::HIGH>(sums, h, C[HALVES == 1 ? 0 : i % 2], j);
    add_product<Part::HIGH, Part::LOW>(sums, h, C[HALVES == 1 ? 0 : i % 2], j);
    add_product<Part::HIGH, Part::HIGH>(sums, h, C[HALVES == 1 ? 0 : i % 2], j);
#else
    add_product<Part::WHOLE, Part::WHOLE>(sums, h, C[HALVES == 1 ? 0 : i % 2], j);
#endif
  }
}

// Takes from step i's sums what is the lane's. Every item is some step's: the first ones may write everywhere.
__device__ __forceinline__ void take_items(float (&y)[2][2], int i, const float (&sums)[4], const int (&pair)[2]) {
  if (i < 2 || pair[0] == i / 2) y[0][i % 2] = sums[HALVES == 1 ? i % 2 : 0];
  if (i < 2 || pair[1] == i / 2) y[1][i % 2] = sums[HALVES == 1 ? 2 + i % 2 : 3];
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, MIN_BLOCKS)
    forward(const __grid_constant__ ForwardArguments x) {
  extern __shared__ __align__(16) char memory[];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int segment = warp % SEGMENTS, column = warp / SEGMENTS;
  const int place = lane >> 2, quarter = lane & 3;
  WarpMemory& mine = reinterpret_cast<WarpMemory*>(memory)[warp];

  const int blocks_per_batch = (int)((x.channels + TILE_CHANNELS * COLUMNS - 1) / (TILE_CHANNELS * COLUMNS));
  const long long b = blockIdx.x / blocks_per_batch;
  const long long warp_channel = (blockIdx.x % blocks_per_batch * (long long)COLUMNS + column) * TILE_CHANNELS;
  const long long channel = warp_channel + ROW_CHANNELS * place;
  const int num_channels = (int)min(max(x.channels - channel, 0ll), (long long)ROW_CHANNELS);
  const int state = (int)x.state, length = (int)x.length;
  const auto channel_of = [&](int row) { return channel + (ROW_CHANNELS == 2 ? row : 0); };

  // Where this lane's channels and states begin. What does not exist is read from the nearest that does, and not used.
  const long long from_channel = num_channels ? channel : 0;
  const int B_state = STATES == 1 ? place / 2 : PRODUCTS * place, C_state = STATES * quarter;
  const char* u_at = at<U_T>(x.u, b, 0, from_channel);
  const char* delta_at = at<DELTA_T>(x.delta, b, 0, from_channel);
  const char* z_at = at<Z_T>(x.z, b, 0, from_channel);
  const char* B_at = at<B_T>(x.B, b, 0, B_state);
  const char* C_at = at<C_T>(x.C, b, 0, C_state);
  char* y_at = at<U_T>(x.y, b, 0, channel);
  // Kept, not computed again for every tile.
  asm volatile("" : "+l"(u_at), "+l"(delta_at), "+l"(z_at), "+l"(B_at), "+l"(C_at), "+l"(y_at));

  // Of the 8 steps a lane owns two neighbouring ones in either row: those of its quarter, and in a second half those of
  // the quarter two on, so that one product can take the B of one step for the first row and of another for the second.
  // Its place in the product that reads states stands for one step, of every second one if there are two halves.
  const int pair[2] = {quarter, HALVES == 1 ? quarter : quarter ^ 2};
  const auto item_time = [&](int t0, int row, int step) {
    return t0 + (HALVES == 2 ? STEPS * row : 0) + 2 * pair[row] + step;
  };
  const auto B_time = [&](int t0, int four, int step) {
    return HALVES == 1 || four == quarter / 2 ? item_time(t0, 0, step) : item_time(t0, 1, step);
  };
  const auto C_time = [&](int t0, int set) {
    return t0 + (HALVES == 1 ? place : (place & 1 ? STEPS + 2 * (place >> 1 ^ 2) : place) + set);
  };
  struct Stage {
    RawItems<U_T> u;
    RawItems<DELTA_T> delta;
    RawItems<Z_T> z;
    Raw<B_T, PRODUCTS> B[HALVES][2];
    Raw<C_T, STATES> C[HALVES];
    unsigned char starts[HALVES][2];
  } stage;
  const auto load_BC = [&](Stage& stage, int t0, int group) {
    const int first = group * GROUP_STATES;
#pragma unroll
    for (int half = 0; half < HALVES; ++half) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const int t = min(B_time(t0, half, step), length - 1);
        stage.B[half][step] = load_neighbours<B_T, PRODUCTS>(
            step_at(B_at, x.B, t) + first * x.B.last * (long long)sizeof(B_T), x.B.last, state - B_state - first);
      }
      const int t = min(C_time(t0, half), length - 1);
      stage.C[half] = load_neighbours<C_T, STATES>(
          step_at(C_at, x.C, t) + first * x.C.last * (long long)sizeof(C_T), x.C.last, state - C_state - first);
    }
  };
  const auto load_tile = [&](Stage& stage, int t0) {
    int times[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) times[i / 2][i % 2] = min(item_time(t0, i / 2, i % 2), length - 1);
    stage.u = load_items<U_T>(x.u, u_at, times, num_channels);
    stage.delta = load_items<DELTA_T>(x.delta, delta_at, times, num_channels);
    if (HAS_Z) stage.z = load_items<Z_T>(x.z, z_at, times, num_channels);
    if (GROUPS == 1) load_BC(stage, t0, 0);
    if (HAS_STARTS) {
#pragma unroll
      for (int i = 0; i < 2 * HALVES; ++i) {
        const long long t = min(item_time(t0, i / 2, i % 2), length - 1);
        stage.starts[i / 2][i % 2] = x.starts[b * x.starts_batch + t * x.starts_time];
      }
    }
  };
  int t0 = segment * TILE_STEPS;
  load_tile(stage, t0);

  float bias[2], skip[2];
#pragma unroll
  for (int row = 0; row < ROW_CHANNELS; ++row) {
    const bool exists = channel_of(row) < x.channels;
    bias[row] = HAS_BIAS && exists ? x.bias[channel_of(row)] : 0.f;
    skip[row] = HAS_D && exists ? x.D[channel_of(row)] * (1.f / UNTRUNCATE) : 0.f;
  }
  if (ROW_CHANNELS == 1) {
    bias[1] = bias[0];
    skip[1] = skip[0];
  }

  const long long padded_channels = (x.channels + CHANNELS - 1) / CHANNELS * CHANNELS;
  const auto save_checkpoint = [&](int t, int row, int group, const States& h) {
#if CHECKPOINT_STEPS
    if (t % CHECKPOINT_STEPS == 0 && t < length && channel_of(row) < padded_channels) {
      const long long checkpoints_per_batch = (length + CHECKPOINT_STEPS - 1) / CHECKPOINT_STEPS;
      const long long index = (b * checkpoints_per_batch + t / CHECKPOINT_STEPS) * padded_channels + channel_of(row);
      reinterpret_cast<States*>(x.checkpoints + index * PADDED_STATES)[group * 4 + quarter] = h;
    }
#endif
  };

  RowStates rates;
  const auto load_rates_of = [&](int group) {
    const int first = group * GROUP_STATES + C_state;
    rates.of[0] = load_rates(x.A, channel_of(0), x.channels, first, state);
    rates.of[1] = HALVES == 2 ? rates.of[0] : load_rates(x.A, channel_of(1), x.channels, first, state);
  };
  const auto initial_state = [&](int row, int group) {
    return load_states(x.initial, b * x.channels + channel_of(row), channel_of(row) < x.channels,
                       group * GROUP_STATES + C_state, state);
  };
  const auto store_final = [&](int row, int group, const States& h) {
    store_states(x.final, b * x.channels + channel_of(row), channel_of(row) < x.channels,
                 group * GROUP_STATES + C_state, state, h);
  };
  if (GROUPS == 1) load_rates_of(0);
#if SEGMENTS == 1
  RowStates h = {{initial_state(0, 0), initial_state(1, 0)}};
#else
  const int next_segment = segment + 1 == SEGMENTS ? 0 : segment + 1;
  Ring& ring = reinterpret_cast<Ring*>(memory + WARPS * sizeof(WarpMemory))[column];
  if (segment == 0) {
    for (int group = 0; group < GROUPS; ++group) ring.carry[0][group][lane] = initial_state(0, group);
  }
  if (GROUPS > 1) {
    for (int group = lane; group < GROUPS; group += 32) start(ring.has_carry[segment][group]);
    __syncthreads();
    if (segment == 0) {
      for (int group = lane; group < GROUPS; group += 32) arrive(ring.has_carry[0][group]);
    }
  }
#endif

  const int num_rounds = (length + SEGMENTS * TILE_STEPS - 1) / (SEGMENTS * TILE_STEPS);
#pragma unroll 1
  for (int round = 0; round < num_rounds; ++round, t0 += SEGMENTS * TILE_STEPS) {
    float u[2][2], delta[2][2], inflow[2][2], gate[2][2], y[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = i / 2, step = i % 2;
      u[row][step] = item(stage.u, row, step);
      delta[row][step] = step_size(item(stage.delta, row, step) + bias[row]).delta;
      inflow[row][step] = delta[row][step] * u[row][step];
      if (!SPLIT_OPERANDS) inflow[row][step] = rounded(inflow[row][step]);
      gate[row][step] = UNTRUNCATE;
      if (HAS_Z) {
        const float z = item(stage.z, row, step);
        gate[row][step] = z * reciprocal(fmaf(ex2(-LOG2_E * z), 1.f / UNTRUNCATE, 1.f / UNTRUNCATE));
      }
      // Computed here, not where they are wanted: what they come from would have to be copied out of the way of the
      // next tile's, which would first have to arrive. The same goes for B and C.
      asm volatile("" : "+f"(u[row][step]), "+f"(gate[row][step]));
    }
    if (t0 + TILE_STEPS > length) {
      // Beyond the end a step of size 0 leaves the state as it is.
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool exists = item_time(t0, i / 2, i % 2) < length;
        if (!exists) delta[i / 2][i % 2] = inflow[i / 2][i % 2] = 0.f;
      }
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      *reinterpret_cast<Float2*>(mine.delta[row] + row_at(place) + 2 * pair[row]) = {delta[row][0], delta[row][1]};
    }
    if (HAS_STARTS && place == 0) {
#pragma unroll
      for (int i = 0; i < 2 * HALVES; ++i) {
        const int t = item_time(t0, i / 2, i % 2);
        mine.cut[t - t0] = stage.starts[i / 2][i % 2] && t < length ? CUT : 0.f;
      }
    }
    float B[2][HALVES][PRODUCTS];
    States C[HALVES];
    const auto take_BC = [&](const Stage& stage) {
#pragma unroll
      for (int half = 0; half < HALVES; ++half) {
#pragma unroll
        for (int i = 0; i < 2 * PRODUCTS; ++i) {
          const float entry = value(stage.B[half][i % 2], i / 2);
          B[i % 2][half][i / 2] = SPLIT_OPERANDS || sizeof(B_T) == 2 ? entry : rounded(entry);
          asm volatile("" : "+f"(B[i % 2][half][i / 2]));
        }
        C[half] = values(stage.C[half]);
#pragma unroll
        for (int k = 0; k < STATES; ++k) asm volatile("" : "+f"(C[half].of[k]));
      }
    };
    if (GROUPS == 1) take_BC(stage);
    load_tile(stage, t0 + SEGMENTS * TILE_STEPS);
    __syncwarp();

#pragma unroll 1
    for (int group = 0; group < GROUPS; ++group) {
      if (GROUPS > 1) {
        Stage of_group;
        load_rates_of(group);
        load_BC(of_group, t0, group);
        take_BC(of_group);
      }
      EightSteps size[2];
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const Float4* from = reinterpret_cast<const Float4*>(mine.delta[row] + row_at(place));
        const Float4 first = from[0], second = from[1];
        size[row] = {{first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w}};
      }
      const auto decay_of = [&](int row, int i) {
        const float cut = HAS_STARTS ? mine.cut[HALVES == 2 ? STEPS * row + i : i] : 0.f;
        States decay;
#pragma unroll
        for (int k = 0; k < STATES; ++k) {
          const float rate = rates.of[row].of[k], delta = size[row].of[i];
          decay.of[k] = ex2(HAS_STARTS ? fmaf(delta, rate, cut) : delta * rate);
        }
        return decay;
      };
      float read[2][2];

#if SEGMENTS == 1
      save_checkpoint(t0, 0, 0, h.of[0]);
      save_checkpoint(t0, 1, 0, h.of[1]);
#pragma unroll
      for (int i = 0; i < STEPS; ++i) {
        const RowStates enters = entering(inflow, B, i, pair);
#pragma unroll
        for (int row = 0; row < 2; ++row) h.of[row] = multiply_add(decay_of(row, i), h.of[row], enters.of[row]);
        float sums[4] = {0.f, 0.f, 0.f, 0.f};
        read_states(sums, i, C, h);
        take_items(read, i, sums, pair);
      }
#else
      // From zero, and what the tile does to any state: multiply it by the products of the decays.
      RowStates h, product[STEPS];
      float sums[STEPS][4];
#pragma unroll
      for (int i = 0; i < STEPS; ++i) {
        const RowStates enters = entering(inflow, B, i, pair);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const States decay = decay_of(row, i);
          h.of[row] = i == 0 ? enters.of[row] : multiply_add(decay, h.of[row], enters.of[row]);
          product[i].of[row] = i == 0 ? decay : multiply(decay, product[i == 0 ? 0 : i - 1].of[row]);
        }
        sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.f;
        read_states(sums[i], i, C, h);
      }
      if (GROUPS > 1) {
        wait(ring.has_carry[segment][group], round);
      } else if (round > 0 || segment > 0) {
        synchronize_warps(column * SEGMENTS + segment, 64);
      }
      RowStates start;  // of the halves
      start.of[0] = ring.carry[segment][group][lane];
      start.of[1] = multiply_add(product[STEPS - 1].of[0], start.of[0], h.of[0]);
      ring.carry[next_segment][group][lane] = multiply_add(product[STEPS - 1].of[1], start.of[1], h.of[1]);
      if (GROUPS > 1) {
        __syncwarp();
        if (lane == 0) arrive(ring.has_carry[next_segment][group]);
      } else if (round < num_rounds - 1 || segment < SEGMENTS - 1) {
        arrive_at_barrier(column * SEGMENTS + next_segment, 64);
      }
      save_checkpoint(t0, 0, group, start.of[0]);
      save_checkpoint(t0 + STEPS, 1, group, start.of[1]);
#pragma unroll
      for (int i = 0; i < STEPS; ++i) {
        read_states(sums[i], i, C,
                    {{multiply(product[i].of[0], start.of[0]), multiply(product[i].of[1], start.of[1])}});
        take_items(read, i, sums[i], pair);
      }
#endif
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        y[i / 2][i % 2] = group == 0 ? read[i / 2][i % 2] : y[i / 2][i % 2] + read[i / 2][i % 2];
      }
    }

#pragma unroll
    for (int step = 0; step < 2; ++step) {
      float out[2];
#pragma unroll
      for (int row = 0; row < 2; ++row) out[row] = gate[row][step] * fmaf(skip[row], u[row][step], y[row][step]);
      if constexpr (ROW_CHANNELS == 2) {
        const int t = item_time(t0, 0, step);
        put_pair<U_T>(step_at(y_at, x.y, t), x.y.last, t < length ? num_channels : 0, out[0], out[1]);
      } else {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const int t = item_time(t0, row, step);
          if (t < length && num_channels) put(reinterpret_cast<U_T*>(step_at(y_at, x.y, t)), out[row]);
        }
      }
    }
    __syncwarp();
  }

#if SEGMENTS == 1
  store_final(0, 0, h.of[0]);
  store_final(1, 0, h.of[1]);
#else
  if (segment == SEGMENTS - 1) {
    for (int group = 0; group < GROUPS; ++group) store_final(0, group, ring.carry[0][group][lane]);
  }
#endif
}
