// Selective scan, backward.
//
//   with dy_t the gradient at y_t before the gate, g_t at h_t and r_t = exp(delta_t A) g_t what reaches h_{t-1}:
//     g_t = C_t dy_t + r_{t+1}
//     dC_t = sum over channels of dy_t h_t              dB_t = sum over channels of delta_t u_t g_t
//     d(delta_t u_t) = <B_t, g_t>                       d(delta_t) = <A, r_t h_{t-1}>
//     dA = sum over steps of delta_t r_t h_{t-1}
//
// Mapping: lane = 8 quarter + channel (tile.cuh). SEGMENTS warps, a team, share 8 channels and each takes 8 consecutive
// steps, so a team holds SEGMENTS x 8 steps (a chunk). In a chunk every warp scans its steps from zero in both
// directions, tells the others its decay and both its ends, takes its true start and end state from theirs and the
// chunk's checkpoint, and walks the steps again: forward for h, backward for everything else, decays and states in
// registers. Before it moves on to another chunk, a team does this for channel_groups x 8 channels.
//
// TEAMS x CLUSTER teams, of the blocks of a cluster, take turns at the chunks, from the last to the first: one where
// there are channels enough. Only r goes from chunk to chunk, and a team hands it to the next as soon as its warps have
// told each other their ends, long before it has walked the steps: so the teams drift apart and fill each other's waits.
//
// Long sequences come in pieces, the last first, so that what is not yet added up stays small.
//
// The sums over channels are matrix products. A lane's states are rows, the lanes' channels the inner axis, and the
// right factor has one column a step: delta u (for dB) or dy (for dC) in the step's column, 0 in the others, so that
// one accumulator gathers several steps, and over all channel groups, in registers. Lanes 0-3 and 4-7 hold different
// channels of the same states: of the 8 columns four are for the former and four for the latter.
// The sums over states go through shuffles. No atomics: every result has one writer.
//
// The host defines, beyond what tile.cuh names: TEAMS, CLUSTER.
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
  float* dBC;                         // (clusters of a batch, batch, steps of the piece, 2, PADDED_STATES)
  long long batch, length, channels, state, channel_groups;
  // The chunks of this piece of the sequence. A later piece has left its dinitial in dfinal, and sums to add to.
  long long first_chunk, end_chunk, adds_to_sums;
};

constexpr int PAIRS = (STATES + 1) / 2;  // of a lane's states: the two rows it has in a matrix product
constexpr int STEP_SETS = STEPS / 4;     // one accumulator gathers four steps
constexpr int CHUNK = SEGMENTS * STEPS;
constexpr int WARPS = TEAMS * SEGMENTS;  // of a block
constexpr int ALL_TEAMS = CLUSTER * TEAMS;
static_assert(TEAMS == 1 || CLUSTER > 1, "teams send to each other within a cluster");
constexpr float UNTRUNCATE = SPLIT_OPERANDS ? 1.f : (1.f + MEAN_TRUNCATION) * (1.f + MEAN_TRUNCATION);

// A sum over states: the quarters have parts of it for the eight steps of their channel, and every lane takes the sums
// of its two items. Twice lanes swap steps of the same channel, then channels of the same steps.
__device__ __forceinline__ Float2 sum_over_states(const float (&parts)[STEPS], int lane) {
  float four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float kept = lane & 16 ? parts[4 + i] : parts[i], sent = lane & 16 ? parts[i] : parts[4 + i];
    four[i] = kept + __shfl_xor_sync(~0u, sent, 16);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float kept = lane & 8 ? four[2 + i] : four[i], sent = lane & 8 ? four[i] : four[2 + i];
    two[i] = kept + __shfl_xor_sync(~0u, sent, 8);
  }
  const float neighbours = __shfl_xor_sync(~0u, lane & 1 ? two[0] : two[1], 1);
  return lane & 1 ? Float2{neighbours, two[1]} : Float2{two[0], neighbours};
}

struct WarpMemory {
  float delta[CHANNELS * ROW], inflow[CHANNELS * ROW], dy[CHANNELS * ROW], u[CHANNELS * ROW];
  float B[STEPS * PADDED_STATES], C[STEPS * PADDED_STATES];
  float cut[STEPS];
};

struct SkipAndBias {
  Float2 skip, bias;
};

// Of 8 channels and a group of their states.
struct alignas(16) SlotMemory {
  States rates[32];
  States carry[2][TEAMS][32];  // r on its way from chunk to chunk
  States dA[WARPS][32];
  PhaseBarrier arrived[TEAMS];  // the carry
};

// Of 8 channels.
struct GroupMemory {
  SkipAndBias skip_and_bias[CHANNELS / 2];
  Float2 sums[WARPS][32];  // for dD and dbias
};

struct TeamMemory {
  States decay[2][SEGMENTS][32], end[2][SEGMENTS][32], begin[2][SEGMENTS][32];
};

// sums += rows x column for each of two steps; the rows are this lane's states.
__device__ __forceinline__ void gather(float (&sums)[PAIRS][4], const States& rows, const States& rows_after,
                                       float column, float column_after) {
#pragma unroll
  for (int pair = 0; pair < PAIRS; ++pair) {
    const bool has_second = 2 * pair + 1 < STATES;
    const float a00 = rows.of[2 * pair], a10 = has_second ? rows.of[2 * pair + 1] : 0.f;
    const float a01 = rows_after.of[2 * pair], a11 = has_second ? rows_after.of[2 * pair + 1] : 0.f;
#if SPLIT_OPERANDS
    const float high00 = high_part(a00), high10 = high_part(a10), high01 = high_part(a01), high11 = high_part(a11);
    const float high = high_part(column), high_after = high_part(column_after);
    multiply_add(sums[pair], a00 - high00, a10 - high10, a01 - high01, a11 - high11, high, high_after);
    multiply_add(sums[pair], high00, high10, high01, high11, column - high, column_after - high_after);
    multiply_add(sums[pair], high00, high10, high01, high11, high, high_after);
#else
    multiply_add(sums[pair], a00, a10, a01, a11, column, column_after);
#endif
  }
}

// The same place in the shared memory of a block of the cluster.
template <typename T>
__device__ __forceinline__ const T* in_block(const T* here, int rank) {
  return CLUSTER > 1 ? reinterpret_cast<const T*>(in_block_of_cluster(here, rank)) : here;
}

__device__ __forceinline__ void synchronize_blocks() {
  if (CLUSTER > 1) {
    synchronize_cluster();
  } else {
    __syncthreads();
  }
}

extern "C" __global__ void
#if CLUSTER > 1
    __cluster_dims__(CLUSTER, 1, 1)
#endif
    __launch_bounds__(32 * WARPS, MIN_BLOCKS) backward(const __grid_constant__ BackwardArguments x) {
  extern __shared__ __align__(16) char memory[];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, team = warp / SEGMENTS, segment = warp % SEGMENTS;
  const int c = lane & 7, quarter = lane >> 3;                       // of the states
  const int step = 2 * (lane >> 3) + (lane & 1), pair = lane >> 1 & 3;  // of the items
  const int rank = blockIdx.x % CLUSTER, turn = rank * TEAMS + team;   // of the team among all
  const int next_turn = (turn + 1) % ALL_TEAMS, next_team = next_turn % TEAMS, next_rank = next_turn / TEAMS;
  const int channel_groups = (int)x.channel_groups, state = (int)x.state, length = (int)x.length;

  // Shared memory: of the warps, the teams, the states of each channel group, the channel groups.
  WarpMemory& mine = reinterpret_cast<WarpMemory*>(memory)[warp];
  TeamMemory& exchange = reinterpret_cast<TeamMemory*>(memory + WARPS * sizeof(WarpMemory))[team];
  const int slots = channel_groups * GROUPS;
  SlotMemory* slot_memory =
      reinterpret_cast<SlotMemory*>(memory + WARPS * sizeof(WarpMemory) + TEAMS * sizeof(TeamMemory));
  GroupMemory* group_memory = reinterpret_cast<GroupMemory*>(slot_memory + slots);

  const int blocks_per_batch = (int)((x.channels + CHANNELS * channel_groups - 1) / (CHANNELS * channel_groups));
  const long long b = blockIdx.x / CLUSTER / blocks_per_batch, part_of_batch = blockIdx.x / CLUSTER % blocks_per_batch;
  const long long block_channel = part_of_batch * CHANNELS * channel_groups;
  const int block_channels = (int)min(x.channels - block_channel, (long long)CHANNELS * channel_groups);
  const int num_chunks = (length + CHUNK - 1) / CHUNK;
  const int first_chunk = (int)x.first_chunk, end_chunk = (int)x.end_chunk, piece_t0 = first_chunk * CHUNK;
  const int piece_length = min(end_chunk * CHUNK, length) - piece_t0;
  const long long padded_channels = (x.channels + CHANNELS - 1) / CHANNELS * CHANNELS;

  const auto items_of = [&](int channel_group) {
    return min(max(block_channels - channel_group * CHANNELS - 2 * pair, 0), 2);
  };

  for (int slot = warp; slot < slots; slot += WARPS) {
    const long long channel = block_channel + slot / GROUPS * CHANNELS + c;
    const int first = slot % GROUPS * GROUP_STATES + quarter * STATES;
    slot_memory[slot].rates[lane] = load_rates(x.A, channel, x.channels, first, state);
    if (rank == 0) {
      slot_memory[slot].carry[0][0][lane] =
          load_states(x.dfinal, b * x.channels + channel, channel < x.channels, first, state);
    }
    if (ALL_TEAMS > 1 && lane == 0) {
      for (int team = 0; team < TEAMS; ++team) {
        PhaseBarrier& arrived = slot_memory[slot].arrived[team];
        start(arrived);
        // The last chunk's carry is there from the start.
        arrive_expecting(arrived, rank + team > 0 ? sizeof(States) * 32 : 0);
      }
    }
  }
  for (int slot = 0; slot < slots; ++slot) slot_memory[slot].dA[warp][lane] = States{};
  for (int group = 0; group < channel_groups; ++group) {
    group_memory[group].sums[warp][lane] = {0.f, 0.f};
    const long long channel = block_channel + group * CHANNELS + 2 * lane;
    if (warp == 0 && lane < 4) {
      const bool first = channel < x.channels, second = channel + 1 < x.channels;
      group_memory[group].skip_and_bias[lane] = {
          {HAS_D && first ? x.D[channel] : 0.f, HAS_D && second ? x.D[channel + 1] : 0.f},
          {HAS_BIAS && first ? x.bias[channel] : 0.f, HAS_BIAS && second ? x.bias[channel + 1] : 0.f}};
    }
  }

  const long long item_channel = block_channel + 2 * pair;
  const int last_chunk = end_chunk - 1 - turn;  // of this team
  int t = last_chunk * CHUNK + segment * STEPS + step;  // of the lane's items
  const char *u_at, *delta_at, *z_at, *dout_at;
  Raw<U_T, 2> u_raw, dout_raw;
  Raw<DELTA_T, 2> delta_raw;
  Raw<Z_T, 2> z_raw;
  // What does not exist is read from the nearest that does, and not used.
  const auto aim_at_chunk = [&](int t) {
    const int from_t = min(max(t, 0), length - 1);
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
  // Of the chunk ahead. B and C of more than one group are read where they are wanted.
  Raw<B_T, STATES> B_raw;
  Raw<C_T, STATES> C_raw;
  const char* B_at = at<B_T>(x.B, b, min(max(t, 0), length - 1), pair * STATES);
  const char* C_at = at<C_T>(x.C, b, min(max(t, 0), length - 1), pair * STATES);
  const auto load_BC = [&] {
    B_raw = load_quarter<B_T>(B_at, x.B.last, state - pair * STATES);
    C_raw = load_quarter<C_T>(C_at, x.C.last, state - pair * STATES);
  };
  States next_start{};
  if (GROUPS == 1) {
    load_BC();
    if (last_chunk >= first_chunk) next_start = load_start(last_chunk, 0, 0);
  }
  // Where this lane's part of dB or dC goes (store_sums).
  const long long sums_step = (part_of_batch * x.batch + b) * piece_length + (t - step) + (lane & 3) - piece_t0;
  float* sums_at = x.dBC + sums_step * 2 * PADDED_STATES + ((lane & 4) * GROUPS + quarter) * STATES;
  long long out = (b * length + t) * x.channels + item_channel;  // of the items, in their gradients
  int groups_ahead = 0;  // of this lane's addresses, since the chunk's first group
  synchronize_blocks();

  int round = 0, visit = 0;  // tiles and chunks of this team so far
#pragma unroll 1
  for (int chunk = last_chunk; chunk >= first_chunk; chunk -= ALL_TEAMS, t -= ALL_TEAMS * CHUNK, ++visit) {
    const int t0 = t - step;
    const bool inside = t < length;
    if (GROUPS == 1) {
      const int place = step * PADDED_STATES + pair * STATES;
      *reinterpret_cast<States*>(mine.B + place) = values(B_raw);
      *reinterpret_cast<States*>(mine.C + place) = values(C_raw);
      if (chunk - ALL_TEAMS >= first_chunk) {
        // The last chunk was aimed at within the sequence.
        if (chunk == last_chunk) {
          B_at = at<B_T>(x.B, b, t - ALL_TEAMS * CHUNK, pair * STATES);
          C_at = at<C_T>(x.C, b, t - ALL_TEAMS * CHUNK, pair * STATES);
        } else {
          B_at -= ALL_TEAMS * CHUNK * x.B.step;
          C_at -= ALL_TEAMS * CHUNK * x.C.step;
        }
        load_BC();
      }
    }
    const int from_t = min(t, length - 1);
#pragma unroll
    for (int group = 0; GROUPS > 1 && group < GROUPS; ++group) {
      const int first = group * GROUP_STATES + pair * STATES, place = step * PADDED_STATES + first;
      *reinterpret_cast<States*>(mine.B + place) =
          values(load_quarter<B_T>(at<B_T>(x.B, b, from_t, first), x.B.last, state - first));
      *reinterpret_cast<States*>(mine.C + place) =
          values(load_quarter<C_T>(at<C_T>(x.C, b, from_t, first), x.C.last, state - first));
    }
    if (HAS_STARTS) stage_starts(mine.cut, x.starts, x.starts_batch, x.starts_time, b, t0, length, lane);
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
        States* to = reinterpret_cast<States*>(sums_at + set * 4 * 2 * PADDED_STATES) + group * 4;
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
      GroupMemory& of_channels = group_memory[channel_group];
      const Float2 bias_pair = of_channels.skip_and_bias[pair].bias;
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
      const bool is_last_group = channel_group + 1 == channel_groups;
      const bool is_last_tile = is_last_group && chunk - ALL_TEAMS < first_chunk;
      const int next_chunk = is_last_group ? chunk - ALL_TEAMS : chunk;
      const int next_channel_group = is_last_group ? 0 : channel_group + 1;
      if (!is_last_group) {
        if (items_of(next_channel_group)) {
          u_at += x.u.across;
          delta_at += x.delta.across;
          dout_at += x.dout.across;
          z_at += x.z.across;
          ++groups_ahead;
        }
      } else if (!is_last_tile) {
        if (chunk == last_chunk) {
          aim_at_chunk(t - ALL_TEAMS * CHUNK);
        } else {
          u_at -= ALL_TEAMS * CHUNK * x.u.step + groups_ahead * x.u.across;
          delta_at -= ALL_TEAMS * CHUNK * x.delta.step + groups_ahead * x.delta.across;
          dout_at -= ALL_TEAMS * CHUNK * x.dout.step + groups_ahead * x.dout.across;
          z_at -= ALL_TEAMS * CHUNK * x.z.step + groups_ahead * x.z.across;
        }
        groups_ahead = 0;
      }
      if (!is_last_tile) load_items(next_channel_group);
      __syncwarp();

      Float2 y = {0.f, 0.f}, dinflow = {0.f, 0.f}, ddecay = {0.f, 0.f};
#pragma unroll 1
      for (int group = 0; group < GROUPS; ++group) {
        const int first = group * GROUP_STATES + quarter * STATES, slot = channel_group * GROUPS + group;
        SlotMemory& of_states = slot_memory[slot];
        States start = GROUPS == 1 ? next_start : load_start(chunk, channel_group, group);
        if (GROUPS == 1 && !is_last_tile) next_start = load_start(next_chunk, next_channel_group, 0);
        const States rates = of_states.rates[lane];

        // From zero, in both directions. h holds the inflow until the true start is known.
        States decay[STEPS], h[STEPS], total, end, begin;
        const EightSteps delta = read_row(mine.delta, c), inflow = read_row(mine.inflow, c), dy = read_row(mine.dy, c);
        float sum = 0.f, total_cut = 0.f;
#pragma unroll
        for (int t = 0; t < STEPS; ++t) {
          const float cut = HAS_STARTS ? mine.cut[t] : 0.f;
          const States B = *reinterpret_cast<const States*>(mine.B + t * PADDED_STATES + first);
          sum += delta.of[t];
          total_cut += cut;
#pragma unroll
          for (int k = 0; k < STATES; ++k) {
            decay[t].of[k] = ex2(HAS_STARTS ? fmaf(delta.of[t], rates.of[k], cut) : delta.of[t] * rates.of[k]);
            h[t].of[k] = inflow.of[t] * B.of[k];
            end.of[k] = t == 0 ? h[t].of[k] : fmaf(decay[t].of[k], end.of[k], h[t].of[k]);
          }
        }
#pragma unroll
        for (int t = STEPS - 1; t >= 0; --t) {
          const States C = *reinterpret_cast<const States*>(mine.C + t * PADDED_STATES + first);
#pragma unroll
          for (int k = 0; k < STATES; ++k) {
            begin.of[k] = decay[t].of[k] * (t == STEPS - 1 ? C.of[k] * dy.of[t] : fmaf(C.of[k], dy.of[t], begin.of[k]));
          }
        }
#pragma unroll
        for (int k = 0; k < STATES; ++k) {
          total.of[k] = ex2(HAS_STARTS ? fmaf(sum, rates.of[k], total_cut) : sum * rates.of[k]);
        }
        if (segment == 0) {
#pragma unroll
          for (int k = 0; k < STATES; ++k) end.of[k] = fmaf(total.of[k], start.of[k], end.of[k]);
        }
        const int parity = round++ & 1;
        exchange.decay[parity][segment][lane] = total;
        exchange.end[parity][segment][lane] = end;
        exchange.begin[parity][segment][lane] = begin;
        synchronize_warps(1 + team, 32 * SEGMENTS);

        if (ALL_TEAMS > 1) {
          // All warps of the team have seen what arrived for the tile before: its slot may wait for the next.
          if (segment == 0 && lane == 0 && round > 1) {
            arrive_expecting(slot_memory[(slot == 0 ? slots : slot) - 1].arrived[team], sizeof(States) * 32);
          }
          wait(of_states.arrived[team], visit);
        }
        States r = of_states.carry[visit & 1][team][lane];
        if (segment > 0) start = exchange.end[parity][0][lane];
#pragma unroll
        for (int other = 1; other < SEGMENTS - 1; ++other) {
          if (other < segment) {
            const States theirs = exchange.decay[parity][other][lane], reached = exchange.end[parity][other][lane];
#pragma unroll
            for (int k = 0; k < STATES; ++k) start.of[k] = fmaf(theirs.of[k], start.of[k], reached.of[k]);
          }
        }
#pragma unroll
        for (int other = SEGMENTS - 1; other > 0; --other) {
          if (other > segment) {
            const States theirs = exchange.decay[parity][other][lane], reached = exchange.begin[parity][other][lane];
#pragma unroll
            for (int k = 0; k < STATES; ++k) r.of[k] = fmaf(theirs.of[k], r.of[k], reached.of[k]);
          }
        }
        // What reaches the chunk before goes out at once.
        if (segment == 0) {
          States out;
#pragma unroll
          for (int k = 0; k < STATES; ++k) out.of[k] = fmaf(total.of[k], r.of[k], begin.of[k]);
          if (chunk == first_chunk) {
            // What reaches the state before the first step.
            const long long channel = block_channel + channel_group * CHANNELS + c;
            store_states(x.dinitial, b * x.channels + channel, channel < x.channels, first, state, out);
          } else {
            const int next_visit = next_turn == 0 ? visit + 1 : visit;
            States& to = of_states.carry[next_visit & 1][next_team][lane];
            if (ALL_TEAMS > 1) {
              send(out.of, to.of, of_states.arrived[next_team], next_rank);
            } else {
              to = out;
            }
          }
        }

#pragma unroll
        for (int t = 0; t < STEPS; ++t) {
#pragma unroll
          for (int k = 0; k < STATES; ++k) {
            h[t].of[k] = fmaf(decay[t].of[k], t == 0 ? start.of[k] : h[t - 1].of[k], h[t].of[k]);
          }
        }

        float y_parts[STEPS], dinflow_parts[STEPS], ddecay_parts[STEPS];
        States dA = of_states.dA[warp][lane];
#pragma unroll
        for (int set = STEP_SETS - 1; set >= 0; --set) {
          const Float4 delta4 = *reinterpret_cast<const Float4*>(mine.delta + c * ROW + set * 4);
          const Float4 dy4 = *reinterpret_cast<const Float4*>(mine.dy + c * ROW + set * 4);
          const float delta_of[4] = {delta4.x, delta4.y, delta4.z, delta4.w}, dy_of[4] = {dy4.x, dy4.y, dy4.z, dy4.w};
          const float my_inflow = mine.inflow[c * ROW + set * 4 + quarter];
          States g_after;
#pragma unroll
          for (int i = 3; i >= 0; --i) {
            const int s = set * 4 + i;
            const States B = *reinterpret_cast<const States*>(mine.B + s * PADDED_STATES + first);
            const States C = *reinterpret_cast<const States*>(mine.C + s * PADDED_STATES + first);
            const States& before = s == 0 ? start : h[s - 1];
            States g;
            y_parts[s] = dinflow_parts[s] = ddecay_parts[s] = 0.f;
#pragma unroll
            for (int k = 0; k < STATES; ++k) {
              g.of[k] = fmaf(C.of[k], dy_of[i], r.of[k]);
              r.of[k] = decay[s].of[k] * g.of[k];
              const float w = r.of[k] * before.of[k];
              ddecay_parts[s] = fmaf(rates.of[k], w, ddecay_parts[s]);
              dA.of[k] = fmaf(delta_of[i], w, dA.of[k]);
              dinflow_parts[s] = fmaf(B.of[k], g.of[k], dinflow_parts[s]);
              if (HAS_Z) y_parts[s] = fmaf(C.of[k], h[s].of[k], y_parts[s]);
            }
            if (i % 2 == 1) {
              g_after = g;
            } else {
              const bool is_my_column = quarter == i, is_after_mine = quarter == i + 1;
              gather(dB[set], g, g_after, is_my_column ? my_inflow : 0.f, is_after_mine ? my_inflow : 0.f);
              gather(dC[set], h[s], h[s + 1], is_my_column ? dy_of[i] : 0.f, is_after_mine ? dy_of[i + 1] : 0.f);
            }
          }
        }
        of_states.dA[warp][lane] = dA;
        const auto add_sums = [&](Float2& to, const float (&parts)[STEPS]) {
          const Float2 sums = sum_over_states(parts, lane);
          to = {to.x + sums.x, to.y + sums.y};
        };
        if (HAS_Z) add_sums(y, y_parts);
        add_sums(dinflow, dinflow_parts);
        add_sums(ddecay, ddecay_parts);
        __syncwarp();
        if (GROUPS > 1) {
          store_sums(group, channel_group > 0);
          clear_sums();
        }
      }

      const float y_of[2] = {y.x, y.y}, dinflow_of[2] = {dinflow.x, dinflow.y}, ddecay_of[2] = {ddecay.x, ddecay.y};
      const Float2 skip_pair = of_channels.skip_and_bias[pair].skip;
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
      Float2& sums = of_channels.sums[warp][lane];
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
    sums_at -= ALL_TEAMS * CHUNK * 2 * PADDED_STATES;
    out -= ALL_TEAMS * CHUNK * x.channels + channel_groups * CHANNELS;
  }
  synchronize_blocks();

  for (int slot = rank * WARPS + warp; slot < slots; slot += CLUSTER * WARPS) {
    const long long channel = block_channel + slot / GROUPS * CHANNELS + c, row = b * x.channels + channel;
    const int first = slot % GROUPS * GROUP_STATES + quarter * STATES;
    States dA = load_states(x.adds_to_sums ? x.dA : nullptr, row, channel < x.channels, first, state);
    for (int from = 0; from < CLUSTER * WARPS; ++from) {
      const States part = *in_block(&slot_memory[slot].dA[from % WARPS][lane], from / WARPS);
#pragma unroll
      for (int k = 0; k < STATES; ++k) dA.of[k] += part.of[k];
    }
    store_states(x.dA, row, channel < x.channels, first, state, dA);
  }
  for (int group = rank * WARPS + warp; group < channel_groups; group += CLUSTER * WARPS) {
    const long long channel = block_channel + group * CHANNELS + lane, row = b * x.channels + channel;
    if (lane < CHANNELS && channel < x.channels) {
      float dD = HAS_D && x.adds_to_sums ? x.dD[row] : 0.f, dbias = HAS_BIAS && x.adds_to_sums ? x.dbias[row] : 0.f;
      for (int from = 0; from < CLUSTER * WARPS; ++from) {
        for (int t = 0; t < STEPS / 2; ++t) {
          const int owner = t / 2 * 8 + lane / 2 * 2 + t % 2;
          const Float2* sums = in_block(&group_memory[group].sums[from % WARPS][owner], from / WARPS);
          dD += lane % 2 ? sums[0].y : sums[0].x;
          dbias += lane % 2 ? sums[16].y : sums[16].x;
        }
      }
      if (HAS_D) x.dD[row] = dD;
      if (HAS_BIAS) x.dbias[row] = dbias;
    }
  }
  synchronize_blocks();  // nobody leaves while it is read from
}

// Adds up, in a fixed order, the clusters' parts of a piece's dB and dC (parts, batch, steps, 2, PADDED_STATES) and, if
// they are there, the batch's parts of the gradients of the parameters.
struct ReduceArguments {
  const float *parts, *dA_parts, *dD_parts, *dbias_parts;
  B_T* dB;
  C_T* dC;
  float *dA, *dD, *dbias;
  long long num_parts, batch, steps, first_step, length, channels, state;
};

extern "C" __global__ void __launch_bounds__(256) reduce_parts(const __grid_constant__ ReduceArguments x) {
  const auto sum = [](const float* from, long long count, long long stride) {
    float sum = 0.f;
#pragma unroll 8
    for (long long i = 0; i < count; ++i) sum += from[i * stride];
    return sum;
  };
  const long long size = x.batch * x.steps * 2 * PADDED_STATES, num_rates = x.channels * x.state;
  long long place = (long long)blockIdx.x * 256 + threadIdx.x;
  if (place < size) {
    const long long step = place / (2 * PADDED_STATES), row = step / x.steps * x.length + x.first_step + step % x.steps;
    const int n = (int)(place % PADDED_STATES);
    if (n >= x.state) return;
    if (place / PADDED_STATES % 2 == 0) {
      put(x.dB + row * x.state + n, sum(x.parts + place, x.num_parts, size));
    } else {
      put(x.dC + row * x.state + n, sum(x.parts + place, x.num_parts, size));
    }
    return;
  }
  place -= size;
  if (!x.dA_parts) return;
  if (place < num_rates) {
    x.dA[place] = sum(x.dA_parts + place, x.batch, num_rates);
    return;
  }
  place -= num_rates;
  if (place >= x.channels) return;
  if (HAS_D) x.dD[place] = sum(x.dD_parts + place, x.batch, x.channels);
  if (HAS_BIAS) x.dbias[place] = sum(x.dbias_parts + place, x.batch, x.channels);
}
