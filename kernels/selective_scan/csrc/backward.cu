// Selective scan, backward.
//
//   with dy_t the gradient at y_t before the gate, g_t at h_t and r_t = exp(delta_t A) g_t what reaches h_{t-1}:
//     g_t = C_t dy_t + r_{t+1}
//     dC_t = sum over channels of dy_t h_t              dB_t = sum over channels of delta_t u_t g_t
//     d(delta_t u_t) = <B_t, g_t>                       d(delta_t) = <A, r_t h_{t-1}>     dA = sum_t delta_t r_t h_{t-1}
//
// Mapping: SEGMENTS warps share 8 channels and each takes 8 consecutive steps, so a block holds SEGMENTS x 8 steps (a
// chunk) and walks the chunks from the last to the first. In a chunk every warp scans its steps from zero in both
// directions, tells the others its decay and both its ends, takes its true start and end state from theirs and the
// chunk's checkpoint, and walks the steps again: forward for h, backward for everything else, decays and states in
// registers. Before it moves on to the next chunk, a block does this for channel_groups x 8 channels.
//
// The sums over channels are matrix products. A lane's states are rows, the lanes' channels the inner axis, and the
// right factor has one column a step: delta u (for dB) or dy (for dC) in the step's column, 0 in the others, so that
// one accumulator gathers several steps, and over all channel groups, in registers. Lanes 0-3 and 4-7 hold different
// channels of the same states: of the 8 columns four are for the former and four for the latter.
// The sums over states go through shared memory (tile.cuh). No atomics: every result has one writer.
//
// Floor: (N + 5) exponentials, logarithms and reciprocals and about 15 N floating-point instructions for every (batch,
// step, channel). Device memory: u, delta, z, dout and their gradients once each, the checkpoints, and
// 128 / (8 channel_groups) bytes of partial dB and dC a (batch, step, channel), written and read.

struct BackwardArguments {
  Rows u, delta, B, C, z, dout, du, ddelta, dz;
  const float *A, *D, *bias, *checkpoints, *dfinal;
  const unsigned char* starts;
  long long starts_batch, starts_time;
  float *dA, *dD, *dbias, *dinitial;  // (batch, channels, ...)
  float* dBC;                         // (blocks of a batch, batch, length, 2, PADDED_STATES)
  long long batch, length, channels, state, channel_groups;
};

constexpr int PAIRS = (STATES + 1) / 2;      // of a lane's states: the two rows it has in a matrix product
constexpr int STEP_SETS = STEPS / 4;         // steps that one accumulator gathers: 4
constexpr int CHUNK = SEGMENTS * STEPS;

// Truncation to 11 significant bits makes h and g smaller by 3.5e-4 on average (mantissas spread logarithmically).
constexpr float UNTRUNCATE = SPLIT_OPERANDS ? 1.f : 1.f + 3.52e-4f;

struct WarpMemory {
  Float4 item[STEPS][CHANNELS];  // delta, delta u, dy
  float B[STEPS * PADDED_STATES], C[STEPS * PADDED_STATES];
  float cut[STEPS];
  float parts[3][PART_SIZE];
};

struct BlockMemory {
  States decay[2][SEGMENTS][32], end[2][SEGMENTS][32], begin[2][SEGMENTS][32];
};

__device__ __forceinline__ float high_part(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }

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
  Float4* skip_and_bias = reinterpret_cast<Float4*>(dA_sums + SEGMENTS * slots * 32);  // [channel_groups][4]
  Float2* item_sums = reinterpret_cast<Float2*>(skip_and_bias + channel_groups * 4);   // [SEGMENTS][channel_groups][32]

  const int blocks_per_batch = (int)((x.channels + CHANNELS * channel_groups - 1) / (CHANNELS * channel_groups));
  const long long b = blockIdx.x / blocks_per_batch, part_of_batch = blockIdx.x % blocks_per_batch;
  const long long block_channel = part_of_batch * CHANNELS * channel_groups;
  const int num_chunks = (length + CHUNK - 1) / CHUNK;
  const long long padded_channels = (x.channels + CHANNELS - 1) / CHANNELS * CHANNELS;

  const auto items_of = [&](int channel_group) {
    const long long left = x.channels - (block_channel + channel_group * CHANNELS + 2 * pair);
    return (int)min(max(left, 0ll), 2ll);
  };

  for (int slot = segment; slot < slots; slot += SEGMENTS) {
    const long long channel = block_channel + slot / GROUPS * CHANNELS + c;
    const int first = slot % GROUPS * GROUP_STATES + quarter * STATES;
    rates_of[slot * 32 + lane] = load_rates(x.A, channel, x.channels, first, state);
    carry[(((num_chunks - 1) & 1) * slots + slot) * 32 + lane] =
        load_states(x.dfinal, b * x.channels + channel, channel < x.channels, first, state);
  }
  for (int slot = 0; slot < slots; ++slot) dA_sums[(segment * slots + slot) * 32 + lane] = States{};
  for (int group = 0; group < channel_groups; ++group) {
    item_sums[(segment * channel_groups + group) * 32 + lane] = {0.f, 0.f};
    const long long channel = block_channel + group * CHANNELS + 2 * lane;
    if (segment == 0 && lane < 4) {
      const bool first = channel < x.channels, second = channel + 1 < x.channels;
      skip_and_bias[group * 4 + lane] = {HAS_D && first ? x.D[channel] : 0.f, HAS_D && second ? x.D[channel + 1] : 0.f,
                                         HAS_BIAS && first ? x.bias[channel] : 0.f,
                                         HAS_BIAS && second ? x.bias[channel + 1] : 0.f};
    }
  }

  Pair<U_T> u_raw;
  Pair<DELTA_T> delta_raw;
  Pair<Z_T> z_raw;
  Pair<U_T> dout_raw;
  const auto load_items = [&](int t0, int channel_group) {
    const int remaining = t0 + step < length ? items_of(channel_group) : 0;
    const long long t = t0 + step, channel = block_channel + channel_group * CHANNELS + 2 * pair;
    u_raw = load_pair(at<U_T>(x.u, b, t, channel), x.u.last, remaining);
    delta_raw = load_pair(at<DELTA_T>(x.delta, b, t, channel), x.delta.last, remaining);
    dout_raw = load_pair(at<U_T>(x.dout, b, t, channel), x.dout.last, remaining);
    if (HAS_Z) z_raw = load_pair(at<Z_T>(x.z, b, t, channel), x.z.last, remaining);
  };
  load_items((num_chunks - 1) * CHUNK + segment * STEPS, 0);
  __syncthreads();

  int round = 0;
  for (int chunk = num_chunks - 1; chunk >= 0; --chunk) {
    const int t0 = chunk * CHUNK + segment * STEPS;
    {
      Quad<B_T> B_raw[QUADS_PER_LANE];
      Quad<C_T> C_raw[QUADS_PER_LANE];
      load_quads(B_raw, x.B, b, t0, length, state, lane);
      load_quads(C_raw, x.C, b, t0, length, state, lane);
      stage_quads(mine.B, B_raw, lane);
      stage_quads(mine.C, C_raw, lane);
      if (HAS_STARTS) stage_starts(mine.cut, x.starts, x.starts_batch, x.starts_time, b, t0, length, lane);
    }
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
            x.dBC + ((((part_of_batch * x.batch + b) * length + t) * 2 + keeps_dC) * PADDED_STATES)) + group * 4 + quarter;
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
      const Float4 skip_bias = skip_and_bias[channel_group * 4 + pair];
      const float skip[2] = {skip_bias.x, skip_bias.y}, bias[2] = {skip_bias.z, skip_bias.w};
      const bool inside = t0 + step < length;
      float u[2], delta[2], slope[2], dy[2], gate_slope[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        u[i] = to_float(u_raw.of[i]);
        const StepSize size = step_size(to_float(delta_raw.of[i]) + bias[i]);
        // Beyond the end a step of size 0 leaves both states as they are.
        delta[i] = inside ? size.delta : 0.f;
        slope[i] = size.slope;
        dy[i] = to_float(dout_raw.of[i]);
        if (HAS_Z) {
          const float z = to_float(z_raw.of[i]), opening = sigmoid(z);
          gate_slope[i] = dy[i] * opening * fmaf(z, 1.f - opening, 1.f);
          dy[i] *= z * opening;
        }
        const float inflow = delta[i] * u[i];
        mine.item[step][2 * pair + i] = SPLIT_OPERANDS ? Float4{delta[i], inflow, dy[i], 0.f}
                                                       : Float4{delta[i], round_to_tf32(inflow), round_to_tf32(dy[i]), 0.f};
      }
      const bool is_last = channel_group == channel_groups - 1;
      if (!is_last || chunk > 0) load_items(is_last ? t0 - CHUNK : t0, is_last ? 0 : channel_group + 1);
      __syncwarp();

      Float2 y = {0.f, 0.f}, dinflow = {0.f, 0.f}, ddecay = {0.f, 0.f};
#pragma unroll 1
      for (int group = 0; group < GROUPS; ++group) {
        const int first = group * GROUP_STATES + quarter * STATES, slot = channel_group * GROUPS + group;
        const long long channel = block_channel + channel_group * CHANNELS + c;
        States start{};
        if (channel < padded_channels) {
          const long long place = (b * num_chunks + chunk) * padded_channels + channel;
          start = reinterpret_cast<const States*>(x.checkpoints + place * PADDED_STATES)[group * 4 + quarter];
        }
        const States rates = rates_of[slot * 32 + lane];

        // From zero, in both directions. h holds the inflow until the true start is known.
        States decay[STEPS], h[STEPS], total, end, begin;
#pragma unroll
        for (int t = 0; t < STEPS; ++t) {
          const Float4 item = mine.item[t][c];
          const float cut = HAS_STARTS ? mine.cut[t] : 0.f;
          const States B = *reinterpret_cast<const States*>(mine.B + t * PADDED_STATES + first);
          const States C = *reinterpret_cast<const States*>(mine.C + t * PADDED_STATES + first);
#pragma unroll
          for (int k = 0; k < STATES; ++k) {
            const float a = ex2(HAS_STARTS ? fmaf(item.x, rates.of[k], cut) : item.x * rates.of[k]);
            decay[t].of[k] = a;
            h[t].of[k] = item.y * B.of[k];
            end.of[k] = t == 0 ? h[t].of[k] : fmaf(a, end.of[k], h[t].of[k]);
            total.of[k] = t == 0 ? a : total.of[k] * a;
            const float reached = total.of[k] * (C.of[k] * item.z);
            begin.of[k] = t == 0 ? reached : begin.of[k] + reached;
          }
        }
        const int parity = round++ & 1;
        block.decay[parity][segment][lane] = total;
        block.end[parity][segment][lane] = end;
        block.begin[parity][segment][lane] = begin;
        __syncthreads();

        States r = carry[((chunk & 1) * slots + slot) * 32 + lane];
#pragma unroll
        for (int other = 0; other < SEGMENTS - 1; ++other) {
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
          float y_part[4], dinflow_part[4], ddecay_part[4];
#pragma unroll
          for (int i = 3; i >= 0; --i) {
            const int t = set * 4 + i;
            const Float4 item = mine.item[t][c];
            const States B = *reinterpret_cast<const States*>(mine.B + t * PADDED_STATES + first);
            const States C = *reinterpret_cast<const States*>(mine.C + t * PADDED_STATES + first);
            const States& before = t == 0 ? start : h[t - 1];
            States g;
            y_part[i] = dinflow_part[i] = ddecay_part[i] = 0.f;
#pragma unroll
            for (int k = 0; k < STATES; ++k) {
              g.of[k] = fmaf(C.of[k], item.z, r.of[k]);
              r.of[k] = decay[t].of[k] * g.of[k];
              const float w = r.of[k] * before.of[k];
              ddecay_part[i] = fmaf(rates.of[k], w, ddecay_part[i]);
              dA.of[k] = fmaf(item.x, w, dA.of[k]);
              dinflow_part[i] = fmaf(B.of[k], g.of[k], dinflow_part[i]);
              if (HAS_Z) y_part[i] = fmaf(C.of[k], h[t].of[k], y_part[i]);
            }
            const bool is_my_column = quarter == i;
            gather(dB[set], g, is_my_column ? item.y : 0.f);
            gather(dC[set], h[t], is_my_column ? item.z : 0.f);
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
      float du[2], ddelta[2], dz[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        du[i] = fmaf(dinflow_of[i], delta[i], skip[i] * dy[i]);
        ddelta[i] = fmaf(dinflow_of[i], u[i], LN_2 * ddecay_of[i]) * slope[i];
        dz[i] = HAS_Z ? gate_slope[i] * fmaf(skip[i], u[i], y_of[i]) : 0.f;
      }
      // Steps t and t + 4 meet: the lanes of the first four keep the sums for D, the others those for the bias.
      const bool keeps_bias = lane & 16;
      Float2& sums = item_sums[(segment * channel_groups + channel_group) * 32 + lane];
      float kept[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float for_D = dy[i] * u[i], for_bias = inside ? ddelta[i] : 0.f;
        kept[i] = (keeps_bias ? for_bias : for_D) + __shfl_xor_sync(~0u, keeps_bias ? for_D : for_bias, 16);
      }
      sums = {sums.x + kept[0], sums.y + kept[1]};
      const int remaining = inside ? items_of(channel_group) : 0;
      const long long t = t0 + step, channel = block_channel + channel_group * CHANNELS + 2 * pair;
      put_pair(at<U_T>(x.du, b, t, channel), x.du.last, remaining, du[0], du[1]);
      put_pair(at<DELTA_T>(x.ddelta, b, t, channel), x.ddelta.last, remaining, ddelta[0], ddelta[1]);
      if (HAS_Z) put_pair(at<Z_T>(x.dz, b, t, channel), x.dz.last, remaining, dz[0], dz[1]);
    }
    if (GROUPS == 1) store_sums(0, false);
  }
  __syncthreads();

  for (int slot = segment; slot < slots; slot += SEGMENTS) {
    const long long channel = block_channel + slot / GROUPS * CHANNELS + c, row = b * x.channels + channel;
    const int first = slot % GROUPS * GROUP_STATES + quarter * STATES;
    States dA{};
    for (int from = 0; from < SEGMENTS; ++from) {
#pragma unroll
      for (int k = 0; k < STATES; ++k) dA.of[k] += dA_sums[(from * slots + slot) * 32 + lane].of[k];
    }
    store_states(x.dA, row, channel < x.channels, first, state, dA);
    // The carry left behind by the first chunk is what reaches the initial state.
    if (x.dinitial) {
      store_states(x.dinitial, row, channel < x.channels, first, state, carry[(slots + slot) * 32 + lane]);
    }
  }
  for (int group = segment; group < channel_groups; group += SEGMENTS) {
    const long long channel = block_channel + group * CHANNELS + lane;
    if (lane < CHANNELS && channel < x.channels) {
      float dD = 0.f, dbias = 0.f;
      for (int from = 0; from < SEGMENTS; ++from) {
        for (int t = 0; t < STEPS / 2; ++t) {
          const Float2* sums = item_sums + (from * channel_groups + group) * 32 + 4 * t + lane / 2;
          dD += lane % 2 ? sums[0].y : sums[0].x;
          dbias += lane % 2 ? sums[16].y : sums[16].x;
        }
      }
      if (HAS_D) x.dD[b * x.channels + channel] = dD;
      if (HAS_BIAS) x.dbias[b * x.channels + channel] = dbias;
    }
  }
}

// dB and dC from the blocks' parts (parts, rows, 2, PADDED_STATES), added in a fixed order.
struct ReduceArguments {
  const float* parts;
  B_T* dB;
  C_T* dC;
  long long num_parts, rows, state;
};

extern "C" __global__ void __launch_bounds__(256) reduce_parts(const __grid_constant__ ReduceArguments x) {
  const long long size = x.rows * 2 * PADDED_STATES;
  const long long place = (long long)blockIdx.x * 256 + threadIdx.x;
  if (place >= size) return;
  float sum = 0.f;
#pragma unroll 8
  for (long long part = 0; part < x.num_parts; ++part) sum += x.parts[part * size + place];
  const long long row = place / (2 * PADDED_STATES);
  const int n = (int)(place % PADDED_STATES);
  if (n >= x.state) return;
  if (place / PADDED_STATES % 2 == 0) {
    put(x.dB + row * x.state + n, sum);
  } else {
    put(x.dC + row * x.state + n, sum);
  }
}
