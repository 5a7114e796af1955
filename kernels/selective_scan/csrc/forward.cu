// Selective scan, forward.
//
//   h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t,    y_t = (<C_t, h_t> + D u_t) silu(z_t)
//
// Mapping: a warp owns 8 channels (tile.cuh) and walks time 8 steps at a go, its states in registers. Where batch x
// channels gives too few warps, SEGMENTS warps share the 8 channels: each takes 8 consecutive steps, scans them from
// zero, tells the others its decay and its end state, takes the true start state from theirs and walks its steps
// again. The decays stay in registers, so no exponential is paid for twice, and the decay of 8 steps is
// ex2(rate x sum of delta). COLUMNS such teams make a block.
//
// Floor: (N + 4) exponentials, logarithms and reciprocals for every (batch, step, channel), 16 a clock on every
// multiprocessor; 5 (one segment) or 6 instructions an element besides. Device memory: u, delta, z, y once each.

struct ForwardArguments {
  Rows u, delta, B, C, z, y;
  const float *A, *D, *bias, *initial;
  const unsigned char* starts;
  long long starts_batch, starts_time;
  float *final, *checkpoints;
  long long batch, length, channels, state;
};

constexpr int WARPS = SEGMENTS * COLUMNS;

struct WarpMemory {
  Float2 item[STEPS][CHANNELS];  // delta, delta u
  float B[STEPS * PADDED_STATES], C[STEPS * PADDED_STATES];
  float cut[STEPS];
  float parts[PART_SIZE];
};

#if SEGMENTS > 1
struct TeamMemory {
  States decay[2][SEGMENTS][32], end[2][SEGMENTS][32];
  States carry[2][GROUPS][32];
};
#endif

extern "C" __global__ void __launch_bounds__(32 * WARPS, MIN_BLOCKS) forward(const __grid_constant__ ForwardArguments x) {
  extern __shared__ __align__(16) char memory[];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int segment = warp % SEGMENTS, column = warp / SEGMENTS;
  const int c = lane & 7, quarter = lane >> 3;
  WarpMemory& mine = reinterpret_cast<WarpMemory*>(memory)[warp];

  const int blocks_per_batch = (int)((x.channels + CHANNELS * COLUMNS - 1) / (CHANNELS * COLUMNS));
  const long long b = blockIdx.x / blocks_per_batch;
  const long long channel = (long long)(blockIdx.x % blocks_per_batch) * (CHANNELS * COLUMNS) + column * CHANNELS + c;
  const bool exists = channel < x.channels;
  const long long row = b * x.channels + channel;
  const int state = (int)x.state, length = (int)x.length;

  // This lane's items, and where they lie.
  const int step = lane >> 2, pair = lane & 3;
  const long long first_channel = channel - c + 2 * pair;
  const int num_items = (int)min(max(x.channels - first_channel, 0ll), 2ll);
  float bias[2], skip[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    bias[i] = HAS_BIAS && i < num_items ? x.bias[first_channel + i] : 0.f;
    skip[i] = HAS_D && i < num_items ? x.D[first_channel + i] : 0.f;
  }
  int t0 = segment * STEPS;
  const U_T* u_at = at<U_T>(x.u, b, t0 + step, first_channel);
  const DELTA_T* delta_at = at<DELTA_T>(x.delta, b, t0 + step, first_channel);
  const Z_T* z_at = at<Z_T>(x.z, b, t0 + step, first_channel);
  U_T* y_at = at<U_T>(x.y, b, t0 + step, first_channel);
  const long long u_stride = SEGMENTS * STEPS * x.u.time, delta_stride = SEGMENTS * STEPS * x.delta.time;
  const long long z_stride = SEGMENTS * STEPS * x.z.time, y_stride = SEGMENTS * STEPS * x.y.time;
  Pair<U_T> u_raw;
  Pair<DELTA_T> delta_raw;
  Pair<Z_T> z_raw;
  Quad<B_T> B_raw[QUADS_PER_LANE];
  Quad<C_T> C_raw[QUADS_PER_LANE];
  const auto load_tile = [&](int start) {
    const int remaining = start + step < length ? num_items : 0;
    u_raw = load_pair(u_at, x.u.last, remaining);
    delta_raw = load_pair(delta_at, x.delta.last, remaining);
    if (HAS_Z) z_raw = load_pair(z_at, x.z.last, remaining);
    if (GROUPS == 1) {
      load_quads(B_raw, x.B, b, start, length, state, lane);
      load_quads(C_raw, x.C, b, start, length, state, lane);
    }
  };
  load_tile(t0);

  const long long checkpoints_per_batch = (length + CHECKPOINT_STEPS - 1) / CHECKPOINT_STEPS;
  const long long padded_channels = (x.channels + CHANNELS - 1) / CHANNELS * CHANNELS;
  const auto save_checkpoint = [&](int group, const States& h) {
    if (x.checkpoints && t0 < length && t0 % CHECKPOINT_STEPS == 0 && channel < padded_channels) {
      const long long place = (b * checkpoints_per_batch + t0 / CHECKPOINT_STEPS) * padded_channels + channel;
      reinterpret_cast<States*>(x.checkpoints + place * PADDED_STATES)[group * 4 + quarter] = h;
    }
  };

#if SEGMENTS == 1
  States rates[GROUPS], h[GROUPS];
#pragma unroll
  for (int group = 0; group < GROUPS; ++group) {
    const int first = group * GROUP_STATES + quarter * STATES;
    rates[group] = load_rates(x.A, channel, x.channels, first, state);
    h[group] = load_states(x.initial, row, exists, first, state);
  }
#else
  TeamMemory& team = reinterpret_cast<TeamMemory*>(memory + WARPS * sizeof(WarpMemory))[column];
  States rates;
  for (int group = 0; group < GROUPS; ++group) {
    const int first = group * GROUP_STATES + quarter * STATES;
    rates = load_rates(x.A, channel, x.channels, first, state);
    if (segment == 0) team.carry[0][group][lane] = load_states(x.initial, row, exists, first, state);
  }
  int round = 0;
#endif

  const int num_rounds = (length + SEGMENTS * STEPS - 1) / (SEGMENTS * STEPS);
  for (int superchunk = 0; superchunk < num_rounds; ++superchunk) {
    const bool inside = t0 + step < length;
    float u[2], gate[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      u[i] = to_float(u_raw.of[i]);
      // Beyond the end a step of size 0 leaves the state as it is.
      const float delta = inside ? step_size(to_float(delta_raw.of[i]) + bias[i]).delta : 0.f;
      mine.item[step][2 * pair + i] = {delta, delta * u[i]};
      gate[i] = HAS_Z ? to_float(z_raw.of[i]) : 0.f;
    }
    if (GROUPS > 1) {
      load_quads(B_raw, x.B, b, t0, length, state, lane);
      load_quads(C_raw, x.C, b, t0, length, state, lane);
    }
    stage_quads(mine.B, B_raw, lane);
    stage_quads(mine.C, C_raw, lane);
    if (HAS_STARTS) stage_starts(mine.cut, x.starts, x.starts_batch, x.starts_time, b, t0, length, lane);
    u_at += u_stride;
    delta_at += delta_stride;
    z_at += z_stride;
    load_tile(t0 + SEGMENTS * STEPS);
    __syncwarp();

    float y[STEPS];
#if SEGMENTS == 1
    for (int group = 0; group < GROUPS; ++group) save_checkpoint(group, h[group]);
#pragma unroll
    for (int t = 0; t < STEPS; ++t) {
      const Float2 item = mine.item[t][c];
      const float cut = HAS_STARTS ? mine.cut[t] : 0.f;
      y[t] = 0.f;
#pragma unroll
      for (int group = 0; group < GROUPS; ++group) {
        const int first = t * PADDED_STATES + group * GROUP_STATES + quarter * STATES;
        const States B = *reinterpret_cast<const States*>(mine.B + first);
        const States C = *reinterpret_cast<const States*>(mine.C + first);
#pragma unroll
        for (int k = 0; k < STATES; ++k) {
          const float decay = ex2(HAS_STARTS ? fmaf(item.x, rates[group].of[k], cut) : item.x * rates[group].of[k]);
          h[group].of[k] = fmaf(decay, h[group].of[k], item.y * B.of[k]);
          y[t] = fmaf(C.of[k], h[group].of[k], y[t]);
        }
      }
    }
#else
#pragma unroll
    for (int t = 0; t < STEPS; ++t) y[t] = 0.f;
#pragma unroll 1
    for (int group = 0; group < GROUPS; ++group) {
      const int first = group * GROUP_STATES + quarter * STATES;
      if (GROUPS > 1) rates = load_rates(x.A, channel, x.channels, first, state);
      // From zero: what these steps do to any start state.
      States decay[STEPS], inflow[STEPS], total, end;
      float sum = 0.f;
#pragma unroll
      for (int t = 0; t < STEPS; ++t) {
        const Float2 item = mine.item[t][c];
        const float cut = HAS_STARTS ? mine.cut[t] : 0.f;
        const States B = *reinterpret_cast<const States*>(mine.B + t * PADDED_STATES + first);
        sum += item.x;
#pragma unroll
        for (int k = 0; k < STATES; ++k) {
          decay[t].of[k] = ex2(HAS_STARTS ? fmaf(item.x, rates.of[k], cut) : item.x * rates.of[k]);
          inflow[t].of[k] = item.y * B.of[k];
          end.of[k] = t == 0 ? inflow[t].of[k] : fmaf(decay[t].of[k], end.of[k], inflow[t].of[k]);
        }
      }
      float total_cut = 0.f;
      if (HAS_STARTS) {
#pragma unroll
        for (int t = 0; t < STEPS; ++t) total_cut += mine.cut[t];
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
      save_checkpoint(group, h);
#pragma unroll
      for (int t = 0; t < STEPS; ++t) {
        const States C = *reinterpret_cast<const States*>(mine.C + t * PADDED_STATES + first);
#pragma unroll
        for (int k = 0; k < STATES; ++k) {
          h.of[k] = fmaf(decay[t].of[k], h.of[k], inflow[t].of[k]);
          y[t] = fmaf(C.of[k], h.of[k], y[t]);
        }
      }
      if (segment == SEGMENTS - 1) team.carry[(superchunk + 1) & 1][group][lane] = h;
    }
#endif

    Float4* part = reinterpret_cast<Float4*>(mine.parts + (quarter * CHANNELS + c) * PART_ROW);
    part[0] = {y[0], y[1], y[2], y[3]};
    part[1] = {y[4], y[5], y[6], y[7]};
    __syncwarp();
    const Float2 sum = sum_parts(mine.parts, step, pair);
    float out[2] = {fmaf(skip[0], u[0], sum.x), fmaf(skip[1], u[1], sum.y)};
    if (HAS_Z) {
#pragma unroll
      for (int i = 0; i < 2; ++i) out[i] *= gate[i] * sigmoid(gate[i]);
    }
    put_pair(y_at, x.y.last, inside ? num_items : 0, out[0], out[1]);
    y_at += y_stride;
    t0 += SEGMENTS * STEPS;
  }

#if SEGMENTS == 1
#pragma unroll
  for (int group = 0; group < GROUPS; ++group) {
    store_states(x.final, row, exists, group * GROUP_STATES + quarter * STATES, state, h[group]);
  }
#else
  if (segment == SEGMENTS - 1) {
    for (int group = 0; group < GROUPS; ++group) {
      const int first = group * GROUP_STATES + quarter * STATES;
      store_states(x.final, row, exists, first, state, team.carry[num_rounds & 1][group][lane]);
    }
  }
#endif
}
