// The gradients of a state space's parameters, from u, dy and the states at the beginning and the end of every tile.
//
// Over a row of T steps that begins with the state h and whose end state has the gradient q (dL = Re q dh),
//
//   h' = a^T h + b U,                 U = sum_i a^(T-1-i) u_i
//   y_i = Re <c a^(i+1), h> + ...,    V = sum_i a^(i+1) dy_i
//
// so that, with R_l = sum_i u_i dy_{i+l} and ' for the derivative by the logarithm of a,
//
//   db = q U + c sum_l R_l a^l,   dc = h V + b sum_l R_l a^l,
//   dlog a = T a^T q h + q b U' + h c V' + b c sum_l l R_l a^l.
//
// U and V come chunk by chunk from the tensor cores, h and q by scans over the 16 rows of a tile, R as a product of u
// and dy over the rows, summed along diagonals at the end. dy lies reversed within each row, which makes V / a like U.
// The mapping is that of `convolve`; a block adds up its tiles and writes one part, and `finish` adds the parts.

struct GradientsArguments {
  const IN_T *u, *dy;
  long long u_batch, u_time, dy_batch, dy_time;
  const uint4* power_table;
  const float2* decay_table;
  const Powers* row_table;
  const float2 *step_table, *weight_table;
  const float2* begins;  // (batch, tiles, channels, STATES): h
  const float2* ends;    // the same, tiles from the last to the first: q
  float* parts;          // (batch, segments, channels, PART): db, dc, dlog a without the sums over lags; R
  long long batch, length, channels, num_segments, tiles_per_segment;
};

constexpr int GROUP = STATE_TILES < 4 ? STATE_TILES : 4;  // of state tiles worked on at once

struct Memory {
  Channel u[WARPS], dy[WARPS];
  uint4 power_table[WARPS][2 * STATE_TILES * 32];
  Incoming incoming[2];
};

// Two rows of one step each -> a word for either step.
__device__ __forceinline__ void pair_rows(unsigned row, unsigned next, unsigned& first, unsigned& second) {
  first = __byte_perm(row, next, 0x5410);
  second = __byte_perm(row, next, 0x7632);
}

// u and dy at pairs of rows; `half` chooses the step of dy.
__device__ __forceinline__ void add_lags(float (&sums)[4], const unsigned (&u_high)[4], const unsigned (&u_low)[4],
                                         const unsigned (&dy_high)[4], const unsigned (&dy_low)[4], int half) {
  if (HAS_LOW) {
    multiply_add(sums, u_high, dy_low[half], dy_low[half + 2]);
    multiply_add(sums, u_low, dy_high[half], dy_high[half + 2]);
  }
  multiply_add(sums, u_high, dy_high[half], dy_high[half + 2]);
}

// Over the eight row pairs. Each lane ends up with the sums of one s, g GROUP / 8, in sums[0].
template <int COUNT, int MASK>
__device__ __forceinline__ void add_rows(float (&sums)[GROUP][6], int g) {
  if constexpr (MASK > 0) {
    constexpr int HALF = COUNT > 1 ? COUNT / 2 : 1;
#pragma unroll
    for (int s = 0; s < HALF; ++s) {
#pragma unroll
      for (int i = 0; i < 6; ++i) {
        const float other_half = COUNT > 1 ? sums[s + COUNT / 2][i] : sums[s][i];
        const float mine = g & MASK ? other_half : sums[s][i], theirs = g & MASK ? sums[s][i] : other_half;
        sums[s][i] = mine + __shfl_xor_sync(0xffffffffu, theirs, 4 * MASK);
      }
    }
    add_rows<HALF, MASK / 2>(sums, g);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) gradients(const __grid_constant__ GradientsArguments x) {
  extern __shared__ __align__(16) char memory_bytes[];
  Memory& memory = *reinterpret_cast<Memory*>(memory_bytes);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const long long groups = (x.channels + WARPS - 1) / WARPS;
  const long long first_channel = blockIdx.x % groups * WARPS;
  const long long segment = blockIdx.x / groups % x.num_segments, b = blockIdx.x / groups / x.num_segments;
  const long long channel = first_channel + warp, table = min(channel, x.channels - 1);
  const long long num_tiles = (x.length + TILE - 1) / TILE;
  const int first_tile = (int)(segment * x.tiles_per_segment);
  const int end_tile = (int)min(num_tiles, first_tile + x.tiles_per_segment);

  const Place place;
  const long long channels = x.channels;
  Stream<const IN_T, false> u(x.u + b * x.u_batch, x.u_time, x.length, channels, first_channel, place, first_tile);
  Stream<const IN_T, false> dy(x.dy + b * x.dy_batch, x.dy_time, x.length, channels, first_channel, place, first_tile);
  u.fetch(memory.incoming[0]);
  dy.fetch(memory.incoming[1]);

  for (int i = lane; i < 2 * STATE_TILES * 32; i += 32)
    memory.power_table[warp][i] = x.power_table[table * 2 * STATE_TILES * 32 + i];
  const uint4* plain = memory.power_table[warp] + lane;
  const uint4* counted = plain + STATE_TILES * 32;
  const float2* decays = x.decay_table + table * STATES;
  const float2* weights = x.weight_table + table * 2 * STATES;

  // From the beginning of the rows to their end; `by_log` is the derivative of the sums, in chunks instead of steps.
  auto walk = [&](const Chunk* chunks, int first, float (&sums)[GROUP][4], float (&by_log)[GROUP][4]) {
    auto add_chunk = [&](int sub, bool is_first) {
      const Words high = chunks[sub].high[lane], low = chunks[sub].low[lane];
      uint4 weights[GROUP], counted_weights[GROUP];
#pragma unroll
      for (int s = 0; s < GROUP; ++s) {
        weights[s] = plain[(first + s) * 32];
        counted_weights[s] = counted[(first + s) * 32];
#pragma unroll
        for (int r = 0; r < 4; r += 2) {
          float2 sum = make_float2(0.f, 0.f), counts = sum;
          if (!is_first) {
            const float2 decay = decays[4 * (first + s) + t];
            sum = multiply(decay, make_float2(sums[s][r], sums[s][r + 1]));
            counts = multiply_add(decay, make_float2(by_log[s][r], by_log[s][r + 1]), sum);
          }
          sums[s][r] = sum.x;
          sums[s][r + 1] = sum.y;
          by_log[s][r] = counts.x;
          by_log[s][r + 1] = counts.y;
        }
      }
      // Neighbouring products have sums of their own, because each waits for the one before it.
#pragma unroll
      for (int s = 0; s < GROUP; ++s) {
        multiply_add(sums[s], high.of, weights[s].z, weights[s].w);
        multiply_add(by_log[s], high.of, counted_weights[s].z, counted_weights[s].w);
      }
      if (HAS_LOW) {
#pragma unroll
        for (int s = 0; s < GROUP; ++s) {
          multiply_add(sums[s], low.of, weights[s].x, weights[s].y);
          multiply_add(by_log[s], low.of, counted_weights[s].x, counted_weights[s].y);
        }
      }
#pragma unroll
      for (int s = 0; s < GROUP; ++s) {
        multiply_add(sums[s], high.of, weights[s].x, weights[s].y);
        multiply_add(by_log[s], high.of, counted_weights[s].x, counted_weights[s].y);
      }
    };
    add_chunk(0, true);
#pragma unroll 1
    for (int sub = 1; sub < SUBS; ++sub) add_chunk(sub, false);
  };

  // [i + j][half of the pair in dy][...]: u at steps 16 i + 2 (lane / 4) + ..., dy at reversed steps 16 j + ....
  float lags[SUBS][2][4] = {};
  float totals[STATE_TILES / GROUP][6] = {};
  for (int tile = first_tile; tile < end_tile; ++tile) {
    wait_for_copies();
    unpack<false>(memory.incoming[0], memory.u, place);
    unpack<true>(memory.incoming[1], memory.dy, place);
    u.next_tile();
    dy.next_tile();
    if (tile + 1 < end_tile) {
      u.fetch(memory.incoming[0]);
      dy.fetch(memory.incoming[1]);
    }
    __syncthreads();

    const Chunk *u_chunks = memory.u[warp].chunks, *dy_chunks = memory.dy[warp].chunks;
    // Rows (2 t, 2 t + 1) and (8 + 2 t, 9 + 2 t) at the two steps of pair g of a chunk: [step + 2 (rows from 8 on)].
    auto load_pairs = [&](const Chunk& chunk, unsigned (&high)[4], unsigned (&low)[4]) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int from = 4 * (t + 4 * half) + g % 4, word = 2 * (g / 4);
        pair_rows(chunk.high[from].of[word], chunk.high[from].of[word + 1], high[2 * half], high[2 * half + 1]);
        if (HAS_LOW)
          pair_rows(chunk.low[from].of[word], chunk.low[from].of[word + 1], low[2 * half], low[2 * half + 1]);
      }
    };
#pragma unroll
    for (int j = 0; j < SUBS; ++j) {
      unsigned dy_high[4], dy_low[4];
      load_pairs(dy_chunks[j], dy_high, dy_low);
#pragma unroll
      for (int i = 0; i < SUBS - j; ++i) {
        unsigned high[4], low[4];
        load_pairs(u_chunks[i], high, low);
#pragma unroll
        for (int half = 0; half < 2; ++half)
          add_lags(lags[i + j][half], high, low, dy_high, dy_low, half);
      }
    }

#pragma unroll
    for (int group = 0; group < STATE_TILES / GROUP; ++group) {
      const int first = group * GROUP;
      float U[GROUP][4], U_by_log[GROUP][4], V[GROUP][4], V_by_log[GROUP][4], sums[GROUP][6];
      walk(u_chunks, first, U, U_by_log);
      walk(dy_chunks, first, V, V_by_log);
#pragma unroll
      for (int s = 0; s < GROUP; ++s) {
        const int n = 4 * (first + s) + t;
        const Powers power = x.row_table[table * STATES + n];
        const float2 a = x.step_table[table * 2 * STATES + n], into = weights[n], out = weights[STATES + n];
        float2 v[2], v_by_log[2], q[2], h[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float2 plain_v = make_float2(V[s][2 * r], V[s][2 * r + 1]);
          v[r] = multiply(a, plain_v);
          v_by_log[r] = multiply(a, make_float2(fmaf((float)STEPS, V_by_log[s][2 * r], plain_v.x),
                                                fmaf((float)STEPS, V_by_log[s][2 * r + 1], plain_v.y)));
          h[r] = multiply(into, make_float2(U[s][2 * r], U[s][2 * r + 1]));
          q[r] = multiply(out, v[r]);
        }
        const long long state = (b * num_tiles * x.channels + table) * STATES + n;
        scan_rows<true>(h[0], h[1], x.begins[state + tile * x.channels * STATES], power, g);
        scan_rows<false>(q[1], q[0], x.ends[state + (num_tiles - 1 - tile) * x.channels * STATES], power, g);
        float2 db = make_float2(0.f, 0.f), dc = db, dU = db, dV = db, product = db;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          db = multiply_add(q[r], make_float2(U[s][2 * r], U[s][2 * r + 1]), db);
          dc = multiply_add(h[r], v[r], dc);
          product = multiply_add(q[r], h[r], product);
          dU = multiply_add(q[r], make_float2((float)STEPS * U_by_log[s][2 * r], (float)STEPS * U_by_log[s][2 * r + 1]), dU);
          dV = multiply_add(h[r], v_by_log[r], dV);
        }
        product = multiply(power.of[0], product);
        float2 dlog = make_float2((float)ROW_STEPS * product.x, (float)ROW_STEPS * product.y);
        dlog = multiply_add(into, dU, multiply_add(out, dV, dlog));
        const float both[6] = {db.x, db.y, dc.x, dc.y, dlog.x, dlog.y};
#pragma unroll
        for (int i = 0; i < 6; ++i) sums[s][i] = both[i];
      }
      add_rows<GROUP, 4>(sums, g);
#pragma unroll
      for (int i = 0; i < 6; ++i) totals[group][i] += sums[0][i];
    }
    __syncthreads();
  }

  // Along the diagonals: lag = ROW_STEPS - 1 - 16 (i + j) - 2 (g + 2 t + column) - half - row.
  float* diagonals = reinterpret_cast<float*>(&memory.u[warp]);
#pragma unroll
  for (int sum = 0; sum < SUBS; ++sum)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 4; ++i) diagonals[((sum * 2 + half) * 4 + i) * 32 + lane] = lags[sum][half][i];
  __syncwarp();
  if (channel >= x.channels) return;
  float* part = x.parts + ((b * x.num_segments + segment) * x.channels + channel) * PART;
  for (int lag = lane; lag < ROW_STEPS; lag += 32) {
    float total = 0.f;
    for (int sum = 0; sum < SUBS; ++sum) {
      for (int i = 0; i < 8; ++i) {
        const int half = i & 1, column = i >> 1 & 1, row = i >> 2, rest = ROW_STEPS - 1 - 16 * sum - half - row - lag;
        if (rest & 1) continue;
        for (int other = 0; other < 4; ++other) {
          const int from_g = rest / 2 - 2 * other - column;
          if (from_g >= 0 && from_g < 8) total += diagonals[((sum * 2 + half) * 4 + 2 * row + column) * 32 + from_g * 4 + other];
        }
      }
    }
    part[3 * 2 * STATES + lag] = total;
  }
  if (g * GROUP % 8 == 0) {
#pragma unroll
    for (int group = 0; group < STATE_TILES / GROUP; ++group) {
      const int n = 4 * (group * GROUP + g * GROUP / 8) + t;
#pragma unroll
      for (int i = 0; i < 6; ++i) part[(i / 2 * STATES + n) * 2 + i % 2] = totals[group][i];
    }
  }
}
