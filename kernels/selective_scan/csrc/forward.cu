// Selective scan, forward.
//
//   h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t,    y_t = (<C_t, h_t> + D u_t) silu(z_t)
//
// Mapping: a warp owns 8 channels (tile.cuh), lane = 4 channel + quarter, and walks time 8 steps at a go with its
// states in registers. Where batch x channels gives too few warps, SEGMENTS warps share the 8 channels: each takes 8
// consecutive steps, scans them from zero, tells the others its decay and its end state, takes the true start state
// from theirs and walks its steps again. The decays stay in registers, so no exponential is paid for twice, and the
// decay of 8 steps is ex2(rate x sum of delta). COLUMNS such teams make a block.
//
// <C_t, h_t> is a matrix product, (8 steps x states) (states x 8 channels): the states lie over the lanes as its right
// factor wants them, C as it comes from memory as its left one. Of the product with h_t only row t is of use, and
// it arrives in the lanes that own the items of step t.
//
// Floor: (N + 5) exponentials, logarithms and reciprocals for every (batch, step, channel), 16 a clock on every
// multiprocessor. Device memory: u, delta, z, y once each.

struct ForwardArguments {
  Rows u, delta, B, C, z, y;
  const float *A, *D, *bias, *initial;
  const unsigned char* starts;
  long long starts_batch, starts_time;
  float *final, *checkpoints;
  long long batch, length, channels, state;
};

constexpr int WARPS = SEGMENTS * COLUMNS;
constexpr int STAGES = 1;
constexpr float UNTRUNCATE = SPLIT_OPERANDS ? 1.f : 1.f + MEAN_TRUNCATION;

struct WarpMemory {
  float delta[CHANNELS * ROW], inflow[CHANNELS * ROW];
  float B[STEPS * GROUP_STATES];
  float cut[STEPS];
};

#if SEGMENTS > 1
struct TeamMemory {
  States decay[2][SEGMENTS][32], end[2][SEGMENTS][32];
  States carry[2][GROUPS][32];
};
#endif

// Adds <C_t, h_t> to the lanes that own step t's items, for their two channels. C is that of the lane's own step.
__device__ __forceinline__ void read_state(float (&y)[2], const States& C, const States& h, bool owns_step) {
  float sums[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int k = 0; k < STATES; k += 2) {
    const float C0 = C.of[k], C1 = k + 1 < STATES ? C.of[k + 1] : 0.f;
    const float h0 = h.of[k], h1 = k + 1 < STATES ? h.of[k + 1] : 0.f;
#if SPLIT_OPERANDS
    multiply_add(sums, C0 - high_part(C0), C1 - high_part(C1), high_part(h0), high_part(h1));
    multiply_add(sums, high_part(C0), high_part(C1), h0 - high_part(h0), h1 - high_part(h1));
    multiply_add(sums, high_part(C0), high_part(C1), high_part(h0), high_part(h1));
#else
    multiply_add(sums, C0, C1, h0, h1);
#endif
  }
  if (owns_step) {
    y[0] += sums[0];
    y[1] += sums[1];
  }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, MIN_BLOCKS) forward(const __grid_constant__ ForwardArguments x) {
  extern __shared__ __align__(16) char memory[];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int segment = warp % SEGMENTS, column = warp / SEGMENTS;
  const int c = lane >> 2, quarter = lane & 3;  // of the states
  const int step = lane >> 2, pair = lane & 3;  // of the items
  WarpMemory& mine = reinterpret_cast<WarpMemory*>(memory)[warp];

  const int blocks_per_batch = (int)((x.channels + CHANNELS * COLUMNS - 1) / (CHANNELS * COLUMNS));
  const long long b = blockIdx.x / blocks_per_batch;
  const long long warp_channel = (blockIdx.x % blocks_per_batch * (long long)COLUMNS + column) * CHANNELS;
  const long long channel = warp_channel + c, row = b * x.channels + channel;
  const bool exists = channel < x.channels;
  const int state = (int)x.state, length = (int)x.length;

  // This lane's items, and where they lie.
  const long long item_channel = warp_channel + 2 * pair;
  const int num_items = (int)min(max(x.channels - item_channel, 0ll), 2ll);
  const int items_end = num_items ? length : 0;
  float bias[2], skip[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    bias[i] = HAS_BIAS && i < num_items ? x.bias[item_channel + i] : 0.f;
    skip[i] = HAS_D && i < num_items ? x.D[item_channel + i] : 0.f;
  }
  int t = segment * STEPS + step;  // of the lane's items
  char* y_at = at<U_T>(x.y, b, t, item_channel);
  // What does not exist is read from the nearest that does, and not used.
  const int first_t = min(t, length - 1);
  const long long from_channel = num_items ? item_channel : 0;
  const char* u_at = at<U_T>(x.u, b, first_t, from_channel);
  const char* delta_at = at<DELTA_T>(x.delta, b, first_t, from_channel);
  const char* z_at = at<Z_T>(x.z, b, first_t, from_channel);
  const char* B_at = at<B_T>(x.B, b, first_t, quarter * STATES);
  const char* C_at = at<C_T>(x.C, b, first_t, quarter * STATES);
  // Tiles are asked for STAGES ahead of their use.
  struct Stage {
    Raw<U_T, 2> u;
    Raw<DELTA_T, 2> delta;
    Raw<Z_T, 2> z;
    Raw<B_T, STATES> B;
    Raw<C_T, STATES> C;
  };
  Stage stages[STAGES];
  int next_t = t;
  const auto load_next = [&](Stage& stage) {
    stage.u = load_pair<U_T>(u_at, x.u.last, num_items);
    stage.delta = load_pair<DELTA_T>(delta_at, x.delta.last, num_items);
    if (HAS_Z) stage.z = load_pair<Z_T>(z_at, x.z.last, num_items);
    if (GROUPS == 1) {
      stage.B = load_quarter<B_T>(B_at, x.B.last, state - quarter * STATES);
      stage.C = load_quarter<C_T>(C_at, x.C.last, state - quarter * STATES);
    }
    next_t += SEGMENTS * STEPS;
    if (next_t < length) {
      u_at += x.u.advance;
      delta_at += x.delta.advance;
      z_at += x.z.advance;
      B_at += x.B.advance;
      C_at += x.C.advance;
    }
  };
#pragma unroll
  for (int i = 0; i < STAGES; ++i) load_next(stages[i]);

  const long long checkpoints_per_batch = (length + CHECKPOINT_STEPS - 1) / CHECKPOINT_STEPS;
  const long long padded_channels = (x.channels + CHANNELS - 1) / CHANNELS * CHANNELS;
  const auto save_checkpoint = [&](int t0, int group, const States& h) {
    if (x.checkpoints && t0 % CHECKPOINT_STEPS == 0 && t0 < length && channel < padded_channels) {
      const long long place = (b * checkpoints_per_batch + t0 / CHECKPOINT_STEPS) * padded_channels + channel;
      reinterpret_cast<States*>(x.checkpoints + place * PADDED_STATES)[group * 4 + quarter] = h;
    }
  };

#if SEGMENTS == 1
  static_assert(GROUPS == 1, "the states of one group are kept in registers");
  States rates = load_rates(x.A, channel, x.channels, quarter * STATES, state);
  States h = load_states(x.initial, row, exists, quarter * STATES, state);
#else
  TeamMemory& team = reinterpret_cast<TeamMemory*>(memory + WARPS * sizeof(WarpMemory))[column];
  States rates = load_rates(x.A, channel, x.channels, quarter * STATES, state);
  if (segment == 0) {
    for (int group = 0; group < GROUPS; ++group) {
      team.carry[0][group][lane] = load_states(x.initial, row, exists, group * GROUP_STATES + quarter * STATES, state);
    }
  }
  int round = 0;
#endif

  const int num_rounds = (length + SEGMENTS * STEPS - 1) / (SEGMENTS * STEPS);
  const auto walk_tile = [&](int superchunk, Stage& stage) {
    const int t0 = t - step;
    const bool exist = t < items_end;
    float u[2], gate[2], y[2] = {0.f, 0.f};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      u[i] = value(stage.u, i);
      const float delta = step_size(value(stage.delta, i) + bias[i]).delta, inflow = delta * u[i];
      // Beyond the end a step of size 0 leaves the state as it is.
      mine.delta[(2 * pair + i) * ROW + step] = exist ? delta : 0.f;
      mine.inflow[(2 * pair + i) * ROW + step] = exist ? inflow : 0.f;
      gate[i] = 1.f;
      if (HAS_Z) {
        const float z = value(stage.z, i);
        gate[i] = z * sigmoid(z);
        // Computed here, not where it is wanted: z would have to be copied out of the way of the next one, which would
        // first have to arrive. The same goes for C.
        asm volatile("" : "+f"(gate[i]));
      }
    }
    if (HAS_STARTS) stage_starts(mine.cut, x.starts, x.starts_batch, x.starts_time, b, t0, length, lane);
    States B = values(stage.B), C = values(stage.C);
#pragma unroll
    for (int k = 0; k < STATES; ++k) asm volatile("" : "+f"(C.of[k]));
    load_next(stage);

#if SEGMENTS == 1
    *reinterpret_cast<States*>(mine.B + lane * STATES) = B;
    __syncwarp();
    save_checkpoint(t0, 0, h);
    const EightSteps delta = read_row(mine.delta, c), inflow = read_row(mine.inflow, c);
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      const float cut = HAS_STARTS ? mine.cut[i] : 0.f;
      const States B_i = *reinterpret_cast<const States*>(mine.B + i * GROUP_STATES + quarter * STATES);
#pragma unroll
      for (int k = 0; k < STATES; ++k) {
        const float decay = ex2(HAS_STARTS ? fmaf(delta.of[i], rates.of[k], cut) : delta.of[i] * rates.of[k]);
        h.of[k] = fmaf(decay, h.of[k], inflow.of[i] * B_i.of[k]);
      }
      read_state(y, C, h, step == i);
    }
    __syncwarp();
#else
#pragma unroll 1
    for (int group = 0; group < GROUPS; ++group) {
      const int first = group * GROUP_STATES + quarter * STATES;
      if (GROUPS > 1) {
        rates = load_rates(x.A, channel, x.channels, first, state);
        B = values(load_quarter<B_T>(at<B_T>(x.B, b, min(t, length - 1), first), x.B.last, state - first));
        C = values(load_quarter<C_T>(at<C_T>(x.C, b, min(t, length - 1), first), x.C.last, state - first));
      }
      *reinterpret_cast<States*>(mine.B + lane * STATES) = B;
      __syncwarp();

      // From zero: what these steps do to any start state.
      const EightSteps delta = read_row(mine.delta, c), inflow = read_row(mine.inflow, c);
      States decay[STEPS], entering[STEPS], total, end;
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < STEPS; ++i) {
        const float cut = HAS_STARTS ? mine.cut[i] : 0.f;
        const States B_i = *reinterpret_cast<const States*>(mine.B + i * GROUP_STATES + quarter * STATES);
        sum += delta.of[i];
#pragma unroll
        for (int k = 0; k < STATES; ++k) {
          decay[i].of[k] = ex2(HAS_STARTS ? fmaf(delta.of[i], rates.of[k], cut) : delta.of[i] * rates.of[k]);
          entering[i].of[k] = inflow.of[i] * B_i.of[k];
          end.of[k] = i == 0 ? entering[i].of[k] : fmaf(decay[i].of[k], end.of[k], entering[i].of[k]);
        }
      }
      float total_cut = 0.f;
      if (HAS_STARTS) {
#pragma unroll
        for (int i = 0; i < STEPS; ++i) total_cut += mine.cut[i];
      }
#pragma unroll
      for (int k = 0; k < STATES; ++k) total.of[k] = ex2(fmaf(sum, rates.of[k], total_cut));
      const int parity = round++ & 1;
      team.decay[parity][segment][lane] = total;
      team.end[parity][segment][lane] = end;
      __syncthreads();

      // From the true start state.
      States h = team.carry[superchunk & 1][group][lane];
#pragma unroll
      for (int before = 0; before < SEGMENTS - 1; ++before) {
        if (before < segment) {
          const States theirs = team.decay[parity][before][lane], reached = team.end[parity][before][lane];
#pragma unroll
          for (int k = 0; k < STATES; ++k) h.of[k] = fmaf(theirs.of[k], h.of[k], reached.of[k]);
        }
      }
      save_checkpoint(t0, group, h);
#pragma unroll
      for (int i = 0; i < STEPS; ++i) {
#pragma unroll
        for (int k = 0; k < STATES; ++k) h.of[k] = fmaf(decay[i].of[k], h.of[k], entering[i].of[k]);
        read_state(y, C, h, step == i);
      }
      if (segment == SEGMENTS - 1) team.carry[(superchunk + 1) & 1][group][lane] = h;
    }
#endif

#pragma unroll
    for (int i = 0; i < 2; ++i) y[i] = gate[i] * fmaf(skip[i], u[i], UNTRUNCATE * y[i]);
    put_pair<U_T>(y_at, x.y.last, exist ? num_items : 0, y[0], y[1]);
    y_at += x.y.advance;
    t += SEGMENTS * STEPS;
  };
#pragma unroll 1
  for (int superchunk = 0; superchunk < num_rounds; superchunk += STAGES) {
#pragma unroll
    for (int i = 0; i < STAGES; ++i) {
      if (superchunk + i < num_rounds) walk_tile(superchunk + i, stages[i]);
    }
  }

#if SEGMENTS == 1
  store_states(x.final, row, exists, quarter * STATES, state, h);
#else
  if (segment == SEGMENTS - 1) {
    for (int group = 0; group < GROUPS; ++group) {
      const int first = group * GROUP_STATES + quarter * STATES;
      store_states(x.final, row, exists, first, state, team.carry[num_rounds & 1][group][lane]);
    }
  }
#endif
}
