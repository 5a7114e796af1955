// Selective scan, backward.
//
//   with dy_t the gradient at y_t before the gate, g_t at h_t and r_t = exp(delta_t A) g_t what reaches h_{t-1}:
//     g_t = C_t dy_t + r_{t+1}
//     dC_t = sum over channels of dy_t h_t              dB_t = sum over channels of delta_t u_t g_t
//     d(delta_t u_t) = <B_t, g_t>                       d(delta_t) = <A, r_t h_{t-1}>     dA = sum_t delta_t r_t h_{t-1}
//
// Mapping: lane = 8 quarter + channel (tile.cuh). SEGMENTS warps share 8 channels and each takes 8 consecutive steps, so
// a block holds SEGMENTS x 8 steps (a chunk) and walks the chunks from the last to the first. In a chunk every warp scans
// its steps from zero in both directions, tells the others its decay and both its ends, takes its true start and end
// state from theirs and the chunk's checkpoint, and walks the steps again: forward for h, backward for everything else,
// decays and states in registers. Before it moves on to the next chunk, a block does this for channel_groups x 8
// channels. Long sequences come in pieces, the last first, so that what is not yet added up stays small.
//
// The sums over channels are matrix products. A lane's states are rows, the lanes' channels the inner axis, and the
// right factor has one column a step: delta u (for dB) or dy (for dC) in the step's column, 0 in the others, so that
// one accumulator gathers several steps, and over all channel groups, in registers. Lanes 0-3 and 4-7 hold different
// channels of the same states: of the 8 columns four are for the former and four for the latter.
// The sums over states go through shared memory. No atomics: every result has one writer.
//
// Floor: (N + 5) exponentials, logarithms and reciprocals and about 15 N floating-point instructions for every (batch,
// step, channel). Device memory: u, delta, z, dout and their gradients once each, the checkpoints, and
// N / channel_groups bytes of partial dB and dC a (batch, step, channel), written and read.

struct BackwardArguments {
  Rows u, delta, B, C, z, dout;
  U_T* du;  // gradients of the items: (batch, length, channels), dense
  DELTA_T* ddelta;
  Z_T* dz;
  const float *A, *D, *bias, *checkpoints, *dfinal;
  const unsigned char* starts;
  long long starts_batch, starts_time;
  float *dA, *dD, *dbias, *dinitial;  // (batch, channels, ...)
  float* dBC;                         // (blocks of a batch, batch, steps of the piece, 2, PADDED_STATES)
  long long batch, length, channels, state, channel_groups;
  // The chunks of this piece of the sequence. A later piece has left its dinitial in dfinal, and sums to add to.
  long long first_chunk, end_chunk, adds_to_sums;
};

constexpr int PAIRS = (STATES + 1) / 2;  // of a lane's states: the two rows it has in a matrix product
constexpr int STEP_SETS = STEPS / 4;     // one accumulator gathers four steps
constexpr int CHUNK = SEGMENTS * STEPS;
constexpr float UNTRUNCATE = SPLIT_OPERANDS ? 1.f : (1.f + MEAN_TRUNCATION) * (1.f + MEAN_TRUNCATION);

// Sums over states meet in shared memory: each quarter leaves its part of 8 steps per channel, the items' owners add
// the four. Rows of 12 floats keep both accesses free of bank conflicts.
constexpr int PART_ROW = 12;
constexpr int PART_SIZE = 4 * CHANNELS * PART_ROW;

__device__ __forceinline__ Float2 sum_parts(const float* parts, int step, int pair) {
  Float2 sum = {0.f, 0.f};
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const float* row = parts + (q * CHANNELS + 2 * pair) * PART_ROW + step;
    sum.x += row[0];
    sum.y += row[PART_ROW];
  }
  return sum;
}

struct WarpMemory {
  float delta[CHANNELS * ROW], inflow[CHANNELS * ROW], dy[CHANNELS * ROW], u[CHANNELS * ROW];
  float B[STEPS * PADDED_STATES], C[STEPS * PADDED_STATES];
  float cut[STEPS];
  float parts[3][PART_SIZE];
};

struct SkipAndBias {
  Float2 skip, bias;
};

struct BlockMemory {
  States decay[2][SEGMENTS][32], end[2][SEGMENTS][32], begin[2][SEGMENTS][32];
};

// sums += rows x column, where rows are this lane's states.
__device__ __forceinline__ void gather(float (&sums)[PAIRS][4], const States& rows, float column) {
#pragma unroll
  for (int pair = 0; pair < PAIRS; ++pair) {
    const float first = rows.of[2 * pair], second = 2 * pair + 1 < STATES ? rows.of[2 * pair + 1] : 0.f;
#if SPLIT_OPERANDS
    const float column_high = high_part(column), first_high = high_part(first), second_high = high_part(second);
    multiply_add(sums[pair], first - first_high, second - second_high, column_high);
    multiply_add(sums[pair], first_high, second_high, column - column_high);
    multiply_add(sums[pair], first_high, second_high, column_high);
#else
    multiply_add(sums[pair], first, second, column);
#endif
  }
}

extern "C" __global__ void __launch_bounds__(32 * SEGMENTS, MIN_BLOCKS) backward(const __grid_constant__ BackwardArguments x) {
  extern __shared__ __align__(16) char memory[];
  const int lane = threadIdx.x & 31, segment = threadIdx.x >> 5;
  const int c = lane & 7, quarter = lane >> 3, step = lane >> 2, pair = lane & 3;
  const int channel_groups = (int)x.channel_groups, state = (int)x.state, length = (int)x.length;

  // Shared memory: warps, exchange, then per channel group: rates, D and bias, the adjoint state carried from chunk to
  // chunk, and each warp's running dA, dD and dbias.
  WarpMemory& mine = reinterpret_cast<WarpMemory*>(memory)[segment];
  BlockMemory& block = *reinterpret_cast<BlockMemory*>(memory + SEGMENTS * sizeof(WarpMemory));
  const int slots = channel_groups * GROUPS;
  States* rates_of = reinterpret_cast<States*>(memory + SEGMENTS * sizeof(WarpMemory) + sizeof(BlockMemory));  // [slots][32]
  States* carry = rates_of + slots * 32;                                            // [2][slots][32]
  States* dA_sums = carry + 2 * slots * 32;                                         // [SEGMENTS][slots][32]
  SkipAndBias* skip_and_bias = reinterpret_cast<SkipAndBias*>(dA_sums + SEGMENTS * slots * 32);  // [channel_groups][4]
  Float2* item_sums = reinterpret_cast<Float2*>(skip_and_bias + channel_groups * 4);   // [SEGMENTS][channel_groups][32]

  const int blocks_per_batch = (int)((x.channels + CHANNELS * channel_groups - 1) / (CHANNELS * channel_groups));
  const long long b = blockIdx.x / blocks_per_batch, part_of_batch = blockIdx.x % blocks_per_batch;
  const long long block_channel = part_of_batch * CHANNELS * channel_groups;
  const int block_channels = (int)min(x.channels - block_channel, (long long)CHANNELS * channel_groups);
  const int num_chunks = (length + CHUNK - 1) / CHUNK;
  const int first_chunk = (int)x.first_chunk, end_chunk = (int)x.end_chunk, piece_t0 = first_chunk * CHUNK;
  const int piece_length = min(end_chunk * CHUNK, length) - piece_t0;
  const long long padded_channels = (x.channels + CHANNELS - 1) / CHANNELS * CHANNELS;

  const auto items_of = [&](int channel_group) {
    return min(max(block_channels - channel_group * CHANNELS - 2 * pair, 0), 2);
  };

  for (int slot = segment; slot < slots; slot += SEGMENTS) {
    const long long channel = block_channel + slot / GROUPS * CHANNELS + c;
    const int first = slot % GROUPS * GROUP_STATES + quarter * STATES;
    rates_of[slot * 32 + lane] = load_rates(x.A, channel, x.channels, first, state);
    carry[(((end_chunk - 1) & 1) * slots + slot) * 32 + lane] =
        load_states(x.dfinal, b * x.channels + channel, channel < x.channels, first, state);
  }
  for (int slot = 0; slot < slots; ++slot) dA_sums[(segment * slots + slot) * 32 + lane] = States{};
  for (int group = 0; group < channel_groups; ++group) {
    item_sums[(segment * channel_groups + group) * 32 + lane] = {0.f, 0.f};
    const long long channel = block_channel + group * CHANNELS + 2 * lane;
    if (segment == 0 && lane < 4) {
      const bool first = channel < x.channels, second = channel + 1 < x.channels;
      skip_and_bias[group * 4 + lane] = {
          {HAS_D && first ? x.D[channel] : 0.f, HAS_D && second ? x.D[channel + 1] : 0.f},
          {HAS_BIAS && first ? x.bias[channel] : 0.f, HAS_BIAS && second ? x.bias[channel + 1] : 0.f}};
    }
  }

  const long long item_channel = block_channel + 2 * pair;
  int t = (end_chunk - 1) * CHUNK + segment * STEPS + step;  // of the lane's items
  const char *u_at, *delta_at, *z_at, *dout_at;
  Raw<U_T, 2> u_raw, dout_raw;
  Raw<DELTA_T, 2> delta_raw;
  Raw<Z_T, 2> z_raw;
  // What does not exist is read from the nearest that does, and not used.
  const auto aim_at_chunk = [&](int t) {
    const int from_t = min(t, length - 1);
    const long long from_channel = items_of(0) ? item_channel : block_channel;
    u_at = at<U_T>(x.u, b, from_t, from_channel);
    delta_at = at<DELTA_T>(x.delta, b, from_t, from_channel);
    z_at = at<Z_T>(x.z, b, from_t, from_channel);
    dout_at = at<U_T>(x.dout, b, from_t, from_channel);
  };
  const auto load_items = [&](int channel_group) {
    const int num_items = items_of(channel_group);
    u_raw = load_pair<U_T>(u_at, x.u.last, num_items);
    delta_raw = load_pair<DELTA_T>(delta_at, x.delta.last, num_items);
    dout_raw = load_pair<U_T>(dout_at, x.dout.last, num_items);
    if (HAS_Z) z_raw = load_pair<Z_T>(z_at, x.z.last, num_items);
  };
  // The chunk's start state is the first segment's business, which hands its true end state on. Checkpoints are kept
  // for whole groups of 8 channels.
  const auto load_start = [&](int chunk, int channel_group, int group) {
    States start{};
    if (segment == 0 && channel_group * CHANNELS < block_channels) {
      const long long place = (b * num_chunks + chunk) * padded_channels + block_channel + channel_group * CHANNELS + c;
      start = reinterpret_cast<const States*>(x.checkpoints + place * PADDED_STATES)[group * 4 + quarter];
    }
    return start;
  };
  aim_at_chunk(t);
  load_items(0);
  States next_start{};
  if (GROUPS == 1) next_start = load_start(end_chunk - 1, 0, 0);
  __syncthreads();

  int round = 0;
#pragma unroll 1
  for (int chunk = end_chunk - 1; chunk >= first_chunk; --chunk, t -= CHUNK) {
    const int t0 = t - step;
    const bool inside = t < length;
    const int from_t = min(t, length - 1);
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
      const int first = group * GROUP_STATES + pair * STATES, place = step * PADDED_STATES + first;
      *reinterpret_cast<States*>(mine.B + place) =
          values(load_quarter<B_T>(at<B_T>(x.B, b, from_t, first), x.B.last, state - first));
      *reinterpret_cast<States*>(mine.C + place) =
          values(load_quarter<C_T>(at<C_T>(x.C, b, from_t, first), x.C.last, state - first));
    }
    if (HAS_STARTS) stage_starts(mine.cut, x.starts, x.starts_batch, x.starts_time, b, t0, length, lane);
    long long out = (b * length + t) * x.channels + item_channel;  // of the items, in their gradients
    float dB[STEP_SETS][PAIRS][4], dC[STEP_SETS][PAIRS][4];
    const auto clear_sums = [&] {
#pragma unroll
      for (int i = 0; i < STEP_SETS * PAIRS * 4; ++i) (&dB[0][0][0])[i] = (&dC[0][0][0])[i] = 0.f;
    };
    // Lanes 0-3 of each eight keep their dB and take the other channels' half of it from lanes 4-7, which keep dC.
    const auto store_sums = [&](int group, bool add) {
      const bool keeps_dC = lane & 4;
#pragma unroll
      for (int set = 0; set < STEP_SETS; ++set) {
        const int t = t0 + set * 4 + (lane & 3);
        States sums;
#pragma unroll
        for (int k = 0; k < STATES; ++k) {
          const float (&b_sums)[4] = dB[set][k / 2], (&c_sums)[4] = dC[set][k / 2];
          const int i = k % 2 * 2;
          const float kept = keeps_dC ? c_sums[i + 1] : b_sums[i], sent = keeps_dC ? b_sums[i + 1] : c_sums[i];
          sums.of[k] = UNTRUNCATE * (kept + __shfl_xor_sync(~0u, sent, 4));
        }
        States* to = reinterpret_cast<States*>(
            x.dBC + ((part_of_batch * x.batch + b) * piece_length + t - piece_t0) * 2 * PADDED_STATES) + keeps_dC * GROUPS * 4 + group * 4 + quarter;
        if (t < length) {
          if (add) {
            const States before = *to;
#pragma unroll
            for (int k = 0; k < STATES; ++k) sums.of[k] += before.of[k];
          }
          *to = sums;
        }
      }
    };
    clear_sums();

#pragma unroll 1
    for (int channel_group = 0; channel_group < channel_groups; ++channel_group) {
      const Float2 bias_pair = skip_and_bias[channel_group * 4 + pair].bias;
      const float bias[2] = {bias_pair.x, bias_pair.y};
      const int num_items = inside ? items_of(channel_group) : 0;
      float slope[2], gate_slope[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float u = value(u_raw, i);
        const StepSize size = step_size(value(delta_raw, i) + bias[i]);
        float dy = value(dout_raw, i);
        if (HAS_Z) {
          const float z = value(z_raw, i), opening = sigmoid(z);
          gate_slope[i] = dy * opening * fmaf(z, 1.f - opening, 1.f);
          dy *= z * opening;
        }
        // Where there is no item a step of size 0 leaves both states as they are.
        const bool exists = i < num_items;
        const int place = (2 * pair + i) * ROW + step;
        slope[i] = exists ? size.slope : 0.f;
        mine.delta[place] = exists ? size.delta : 0.f;
        mine.inflow[place] = exists ? size.delta * u : 0.f;
        mine.dy[place] = exists ? dy : 0.f;
        mine.u[place] = exists ? u : 0.f;
      }
      const bool is_last_group = channel_group + 1 == channel_groups, is_last_tile = is_last_group && chunk == first_chunk;
      const int next_chunk = is_last_group ? chunk - 1 : chunk, next_channel_group = is_last_group ? 0 : channel_group + 1;
      if (!is_last_group) {
        if (items_of(next_channel_group)) {
          u_at += x.u.across;
          delta_at += x.delta.across;
          dout_at += x.dout.across;
          z_at += x.z.across;
        }
      } else if (!is_last_tile) {
        aim_at_chunk(t - CHUNK);
      }
      if (!is_last_tile) load_items(next_channel_group);
      __syncwarp();

      Float2 y = {0.f, 0.f}, dinflow = {0.f, 0.f}, ddecay = {0.f, 0.f};
#pragma unroll 1
      for (int group = 0; group < GROUPS; ++group) {
        const int first = group * GROUP_STATES + quarter * STATES, slot = channel_group * GROUPS + group;
        States start = GROUPS == 1 ? next_start : load_start(chunk, channel_group, group);
        if (GROUPS == 1 && !is_last_tile) next_start = load_start(next_chunk, next_channel_group, 0);
        const States rates = rates_of[slot * 32 + lane];

        // From zero, in both directions. h holds the inflow until the true start is known.
        States decay[STEPS], h[STEPS], total, end, begin;
        const EightSteps delta = read_row(mine.delta, c), inflow = read_row(mine.inflow, c), dy = read_row(mine.dy, c);
#pragma unroll
        for (int t = 0; t < STEPS; ++t) {
          const float cut = HAS_STARTS ? mine.cut[t] : 0.f;
          const States B = *reinterpret_cast<const States*>(mine.B + t * PADDED_STATES + first);
          const States C = *reinterpret_cast<const States*>(mine.C + t * PADDED_STATES + first);
#pragma unroll
          for (int k = 0; k < STATES; ++k) {
            const float a = ex2(HAS_STARTS ? fmaf(delta.of[t], rates.of[k], cut) : delta.of[t] * rates.of[k]);
            decay[t].of[k] = a;
            h[t].of[k] = inflow.of[t] * B.of[k];
            end.of[k] = t == 0 ? h[t].of[k] : fmaf(a, end.of[k], h[t].of[k]);
            total.of[k] = t == 0 ? a : total.of[k] * a;
            const float reached = total.of[k] * (C.of[k] * dy.of[t]);
            begin.of[k] = t == 0 ? reached : begin.of[k] + reached;
          }
        }
        if (segment == 0) {
#pragma unroll
          for (int k = 0; k < STATES; ++k) end.of[k] = fmaf(total.of[k], start.of[k], end.of[k]);
        }
        const int parity = round++ & 1;
        block.decay[parity][segment][lane] = total;
        block.end[parity][segment][lane] = end;
        block.begin[parity][segment][lane] = begin;
        __syncthreads();

        States r = carry[((chunk & 1) * slots + slot) * 32 + lane];
        if (segment > 0) start = block.end[parity][0][lane];
#pragma unroll
        for (int other = 1; other < SEGMENTS - 1; ++other) {
          if (other < segment) {
            const States theirs = block.decay[parity][other][lane], reached = block.end[parity][other][lane];
#pragma unroll
            for (int k = 0; k < STATES; ++k) start.of[k] = fmaf(theirs.of[k], start.of[k], reached.of[k]);
          }
        }
#pragma unroll
        for (int other = SEGMENTS - 1; other > 0; --other) {
          if (other > segment) {
            const States theirs = block.decay[parity][other][lane], reached = block.begin[parity][other][lane];
#pragma unroll
            for (int k = 0; k < STATES; ++k) r.of[k] = fmaf(theirs.of[k], r.of[k], reached.of[k]);
          }
        }

#pragma unroll
        for (int t = 0; t < STEPS; ++t) {
#pragma unroll
          for (int k = 0; k < STATES; ++k) {
            h[t].of[k] = fmaf(decay[t].of[k], t == 0 ? start.of[k] : h[t - 1].of[k], h[t].of[k]);
          }
        }

        States dA = dA_sums[(segment * slots + slot) * 32 + lane];
#pragma unroll
        for (int set = STEP_SETS - 1; set >= 0; --set) {
          const Float4 delta4 = *reinterpret_cast<const Float4*>(mine.delta + c * ROW + set * 4);
          const Float4 dy4 = *reinterpret_cast<const Float4*>(mine.dy + c * ROW + set * 4);
          const float delta_of[4] = {delta4.x, delta4.y, delta4.z, delta4.w}, dy_of[4] = {dy4.x, dy4.y, dy4.z, dy4.w};
          const float my_inflow = mine.inflow[c * ROW + set * 4 + quarter];
          float y_part[4], dinflow_part[4], ddecay_part[4];
#pragma unroll
          for (int i = 3; i >= 0; --i) {
            const int s = set * 4 + i;
            const States B = *reinterpret_cast<const States*>(mine.B + s * PADDED_STATES + first);
            const States C = *reinterpret_cast<const States*>(mine.C + s * PADDED_STATES + first);
            const States& before = s == 0 ? start : h[s - 1];
            States g;
            y_part[i] = dinflow_part[i] = ddecay_part[i] = 0.f;
#pragma unroll
            for (int k = 0; k < STATES; ++k) {
              g.of[k] = fmaf(C.of[k], dy_of[i], r.of[k]);
              r.of[k] = decay[s].of[k] * g.of[k];
              const float w = r.of[k] * before.of[k];
              ddecay_part[i] = fmaf(rates.of[k], w, ddecay_part[i]);
              dA.of[k] = fmaf(delta_of[i], w, dA.of[k]);
              dinflow_part[i] = fmaf(B.of[k], g.of[k], dinflow_part[i]);
              if (HAS_Z) y_part[i] = fmaf(C.of[k], h[s].of[k], y_part[i]);
            }
            const bool is_my_column = quarter == i;
            gather(dB[set], g, is_my_column ? my_inflow : 0.f);
            gather(dC[set], h[s], is_my_column ? dy_of[i] : 0.f);
          }
          const int place = (quarter * CHANNELS + c) * PART_ROW + set * 4;
          if (HAS_Z) *reinterpret_cast<Float4*>(mine.parts[0] + place) = {y_part[0], y_part[1], y_part[2], y_part[3]};
          *reinterpret_cast<Float4*>(mine.parts[1] + place) = {dinflow_part[0], dinflow_part[1], dinflow_part[2], dinflow_part[3]};
          *reinterpret_cast<Float4*>(mine.parts[2] + place) = {ddecay_part[0], ddecay_part[1], ddecay_part[2], ddecay_part[3]};
        }
        dA_sums[(segment * slots + slot) * 32 + lane] = dA;
        if (segment == 0) carry[(((chunk + 1) & 1) * slots + slot) * 32 + lane] = r;
        __syncwarp();
        const auto add_parts = [&](Float2& to, int which) {
          const Float2 sum = sum_parts(mine.parts[which], step, pair);
          to.x += sum.x;
          to.y += sum.y;
        };
        if (HAS_Z) add_parts(y, 0);
        add_parts(dinflow, 1);
        add_parts(ddecay, 2);
        if (GROUPS > 1) {
          store_sums(group, channel_group > 0);
          clear_sums();
        }
      }

      const float y_of[2] = {y.x, y.y}, dinflow_of[2] = {dinflow.x, dinflow.y}, ddecay_of[2] = {ddecay.x, ddecay.y};
      const Float2 skip_pair = skip_and_bias[channel_group * 4 + pair].skip;
      const float skip[2] = {skip_pair.x, skip_pair.y};
      float du[2], ddelta[2], dz[2], dD[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int place = (2 * pair + i) * ROW + step;
        const float delta = mine.delta[place], dy = mine.dy[place], u = mine.u[place];
        du[i] = fmaf(dinflow_of[i], delta, skip[i] * dy);
        ddelta[i] = fmaf(dinflow_of[i], u, LN_2 * ddecay_of[i]) * slope[i];
        dz[i] = HAS_Z ? gate_slope[i] * fmaf(skip[i], u, y_of[i]) : 0.f;
        dD[i] = dy * u;
      }
      // Steps t and t + 4 meet: the lanes of the first four keep the sums for D, the others those for the bias.
      const bool keeps_bias = lane & 16;
      Float2& sums = item_sums[(segment * channel_groups + channel_group) * 32 + lane];
      float kept[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        kept[i] = (keeps_bias ? ddelta[i] : dD[i]) + __shfl_xor_sync(~0u, keeps_bias ? dD[i] : ddelta[i], 16);
      }
      sums = {sums.x + kept[0], sums.y + kept[1]};
      put_pair<U_T>(reinterpret_cast<char*>(x.du + out), 1, num_items, du[0], du[1]);
      put_pair<DELTA_T>(reinterpret_cast<char*>(x.ddelta + out), 1, num_items, ddelta[0], ddelta[1]);
      if (HAS_Z) put_pair<Z_T>(reinterpret_cast<char*>(x.dz + out), 1, num_items, dz[0], dz[1]);
      out += CHANNELS;
    }
    if (GROUPS == 1) store_sums(0, false);
  }
  __syncthreads();

  for (int slot = segment; slot < slots; slot += SEGMENTS) {
    const long long channel = block_channel + slot / GROUPS * CHANNELS + c, row = b * x.channels + channel;
    const int first = slot % GROUPS * GROUP_STATES + quarter * STATES;
    States dA = load_states(x.adds_to_sums ? x.dA : nullptr, row, channel < x.channels, first, state);
    for (int from = 0; from < SEGMENTS; ++from) {
#pragma unroll
      for (int k = 0; k < STATES; ++k) dA.of[k] += dA_sums[(from * slots + slot) * 32 + lane].of[k];
    }
    store_states(x.dA, row, channel < x.channels, first, state, dA);
    // The carry left behind by the first chunk is what reaches the state before it.
    const States& left = carry[(((first_chunk + 1) & 1) * slots + slot) * 32 + lane];
    store_states(x.dinitial, row, channel < x.channels, first, state, left);
  }
  for (int group = segment; group < channel_groups; group += SEGMENTS) {
    const long long channel = block_channel + group * CHANNELS + lane, row = b * x.channels + channel;
    if (lane < CHANNELS && channel < x.channels) {
      float dD = HAS_D && x.adds_to_sums ? x.dD[row] : 0.f, dbias = HAS_BIAS && x.adds_to_sums ? x.dbias[row] : 0.f;
      for (int from = 0; from < SEGMENTS; ++from) {
        for (int t = 0; t < STEPS / 2; ++t) {
          const Float2* sums = item_sums + (from * channel_groups + group) * 32 + 4 * t + lane / 2;
          dD += lane % 2 ? sums[0].y : sums[0].x;
          dbias += lane % 2 ? sums[16].y : sums[16].x;
        }
      }
      if (HAS_D) x.dD[row] = dD;
      if (HAS_BIAS) x.dbias[row] = dbias;
    }
  }
}

// A piece's dB and dC from the blocks' parts (parts, batch, steps, 2, PADDED_STATES), added in a fixed order.
struct ReduceArguments {
  const float* parts;
  B_T* dB;
  C_T* dC;
  long long num_parts, batch, steps, first_step, length, state;
};

extern "C" __global__ void __launch_bounds__(256) reduce_parts(const __grid_constant__ ReduceArguments x) {
  const long long size = x.batch * x.steps * 2 * PADDED_STATES;
  const long long place = (long long)blockIdx.x * 256 + threadIdx.x;
  const long long step = place / (2 * PADDED_STATES), row = step / x.steps * x.length + x.first_step + step % x.steps;
  const int n = (int)(place % PADDED_STATES);
  if (place >= size || n >= x.state) return;
  float sum = 0.f;
#pragma unroll 8
  for (long long part = 0; part < x.num_parts; ++part) sum += x.parts[part * size + place];
  if (place / PADDED_STATES % 2 == 0) {
    put(x.dB + row * x.state + n, sum);
  } else {
    put(x.dC + row * x.state + n, sum);
  }
}
