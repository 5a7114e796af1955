// The convolution of a diagonal state space, in chunks, on the tensor cores.
//
//   h_t = a h_{t-1} + b x_t,   y_t = Re <c, h_t> + D x_t       for each channel
//
// A chunk is 16 steps. With the state h at its beginning,
//
//   y_i = sum_{k <= i} K_{i-k} x_k + Re <c a^(i+1), h>,   h' = a^16 h + sum_k a^(15-k) b x_k,
//
// three matrix products. Their right factors come from `tables` and stay with the one warp that walks a channel. The rows
// of the left factors are the 16 rows of a tile, side by side: a first pass over the tile gives the state that each row
// would end with from nothing, a scan over the rows where each begins, a second pass the output. Every operand is the sum
// of two bfloat16, every product three of theirs, summed in float32.
//
// A block is WARPS neighbouring channels of one sequence, or of a segment of one. While a tile is worked on the next is
// on its way.

struct ConvolveArguments {
  const IN_T* x;
  IN_T* y;
  long long x_batch, x_time, y_batch, y_time;
  const uint4 *into_table, *out_table, *near_table;
  const float2* decay_table;
  const Powers* row_table;
  const float2* step_table;
  const float2* initial;  // (batch, segments, channels, STATES) or none
  float2* final;          // SUMMARY: the same; otherwise (batch, channels, STATES)
  float2* checkpoints;    // (batch, tiles, channels, STATES): where each tile begins, or none
  long long batch, length, channels, num_segments, tiles_per_segment;
};

struct Memory {
  Channel channels[WARPS];
  float2 carry[WARPS][STATES];
  uint4 out_table[WARPS][STATE_TILES * 32];
  Incoming incoming;
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) convolve(const __grid_constant__ ConvolveArguments x) {
  extern __shared__ __align__(16) char memory_bytes[];
  Memory& memory = *reinterpret_cast<Memory*>(memory_bytes);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const long long groups = (x.channels + WARPS - 1) / WARPS;
  const long long first_channel = blockIdx.x % groups * WARPS;
  const long long segment = blockIdx.x / groups % x.num_segments, b = blockIdx.x / groups / x.num_segments;
  const long long channel = first_channel + warp, table = min(channel, x.channels - 1);
  const bool exists = channel < x.channels;
  const long long num_tiles = (x.length + TILE - 1) / TILE;
  const long long first_tile = segment * x.tiles_per_segment;
  const long long end_tile = min(num_tiles, first_tile + x.tiles_per_segment);
#if SUMMARY
  if (segment == x.num_segments - 1) return;
#endif

  const Place place;
  const long long channels = x.channels;
  Stream<const IN_T, REVERSE> input(x.x + b * x.x_batch, x.x_time, x.length, channels, first_channel, place, first_tile);
  Stream<IN_T, REVERSE> output(x.y + b * x.y_batch, x.y_time, x.length, channels, first_channel, place, first_tile);
  input.fetch(memory.incoming);

  uint4 into[STATE_TILES];
  float2 decay[STATE_TILES];
#pragma unroll
  for (int s = 0; s < STATE_TILES; ++s) {
    into[s] = x.into_table[(table * STATE_TILES + s) * 32 + lane];
    decay[s] = x.decay_table[table * STATES + 4 * s + t];
    memory.out_table[warp][s * 32 + lane] = x.out_table[(table * STATE_TILES + s) * 32 + lane];
  }
  const uint4 near = x.near_table[table * 32 + lane];
  const Powers* row_powers = x.row_table + table * STATES + t;
  const long long state_row = (b * x.num_segments + segment) * x.channels + table;
  for (int n = lane; n < STATES; n += 32)
    memory.carry[warp][n] = x.initial != nullptr ? x.initial[state_row * STATES + n] : make_float2(0.f, 0.f);

  for (long long tile = first_tile; tile < end_tile; ++tile) {
    wait_for_copies();
    unpack<false>(memory.incoming, memory.channels, place);
    input.next_tile();
    if (tile + 1 < end_tile) input.fetch(memory.incoming);
    __syncthreads();

    Chunk* chunks = memory.channels[warp].chunks;
    // Of the states 4 s + t, at the rows 2 g and 2 g + 1.
    float h[STATE_TILES][4];
    auto decayed = [&](int s) {
#pragma unroll
      for (int r = 0; r < 4; r += 2) {
        const float2 next = multiply(decay[s], make_float2(h[s][r], h[s][r + 1]));
        h[s][r] = next.x;
        h[s][r + 1] = next.y;
      }
    };

    auto add_chunk = [&](int sub, bool is_first) {
      const Words high = chunks[sub].high[lane], low = chunks[sub].low[lane];
#pragma unroll
      for (int s = 0; s < STATE_TILES; ++s) {
        if (is_first) {
          h[s][0] = h[s][1] = h[s][2] = h[s][3] = 0.f;
        } else {
          decayed(s);
        }
      }
      // Neighbouring products have sums of their own, because each waits for the one before it.
#pragma unroll
      for (int s = 0; s < STATE_TILES; ++s) multiply_add(h[s], high.of, into[s].z, into[s].w);
      if (HAS_LOW) {
#pragma unroll
        for (int s = 0; s < STATE_TILES; ++s) multiply_add(h[s], low.of, into[s].x, into[s].y);
      }
#pragma unroll
      for (int s = 0; s < STATE_TILES; ++s) multiply_add(h[s], high.of, into[s].x, into[s].y);
    };
    add_chunk(0, true);
#pragma unroll 1
    for (int sub = 1; sub < SUBS; ++sub) add_chunk(sub, false);

#pragma unroll
    for (int s = 0; s < STATE_TILES; ++s) {
      const float2 carry = memory.carry[warp][4 * s + t];
      if (x.checkpoints != nullptr && exists && g == 0)
        x.checkpoints[((b * num_tiles + tile) * x.channels + channel) * STATES + 4 * s + t] = carry;
      float2 even = make_float2(h[s][0], h[s][1]), odd = make_float2(h[s][2], h[s][3]);
      const float2 end = scan_rows<true>(even, odd, carry, row_powers[4 * s], g);
      if (g == 7) memory.carry[warp][4 * s + t] = end;
      h[s][0] = even.x;
      h[s][1] = even.y;
      h[s][2] = odd.x;
      h[s][3] = odd.y;
    }
    __syncwarp();

#if !SUMMARY
#if FINAL && !REVERSE
    const long long last = x.length - 1 - tile * TILE;
#endif
    auto write_chunk = [&](int sub, bool goes_on) {
      const Words high = chunks[sub].high[lane], low = chunks[sub].low[lane];
#if FINAL && !REVERSE
      if (last < TILE && (int)last / STEPS % SUBS == sub) {
        // The sequence ends in this chunk of one row, whose last steps are walked one by one.
        const int row = (int)last / ROW_STEPS;
        if (row / 2 == g && exists) {
#pragma unroll
          for (int s = 0; s < STATE_TILES; ++s) {
            const float2* step = x.step_table + table * 2 * STATES + 4 * s + t;
            float2 state = row % 2 ? make_float2(h[s][2], h[s][3]) : make_float2(h[s][0], h[s][1]);
#pragma unroll 1
            for (int k = 0; k <= (int)last % STEPS; ++k) {
              const int word = k / 8 * 2 + row % 2, from = 4 * g + k % 8 / 2;
              const unsigned high_pair = chunks[sub].high[from].of[word];
              const unsigned low_pair = HAS_LOW ? chunks[sub].low[from].of[word] : 0u;
              const float input =
                  k % 2 ? second_of(high_pair) + second_of(low_pair) : first_of(high_pair) + first_of(low_pair);
              state = multiply(step[0], state);
              state.x = fmaf(step[STATES].x, input, state.x);
              state.y = fmaf(step[STATES].y, input, state.y);
            }
            x.final[(b * x.channels + channel) * STATES + 4 * s + t] = state;
          }
        }
        __syncwarp();
      }
#endif
      // The small products have sums of their own, for the same reason as above.
      float y[2][4] = {}, rest[2][4] = {};
      multiply_add(rest[0], high.of, near.z, 0u);
      multiply_add(rest[1], high.of, near.w, near.z);
      multiply_add(y[0], high.of, near.x, 0u);
      multiply_add(y[1], high.of, near.y, near.x);
      if (HAS_LOW) {
        multiply_add(rest[0], low.of, near.x, 0u);
        multiply_add(rest[1], low.of, near.y, near.x);
      }
#pragma unroll
      for (int s = 0; s < STATE_TILES; s += 2) {
        unsigned state_high[4], state_low[4];
#pragma unroll
        for (int r = 0; r < 4; ++r)
          split(h[s + r / 2][r % 2 * 2], h[s + r / 2][r % 2 * 2 + 1], state_high[r], state_low[r]);
        const uint4 first = memory.out_table[warp][s * 32 + lane], second = memory.out_table[warp][(s + 1) * 32 + lane];
        if (goes_on) {
          decayed(s);
          decayed(s + 1);
        }
        multiply_add(rest[0], state_high, first.z, first.w);
        multiply_add(rest[1], state_high, second.z, second.w);
        if (goes_on) {
          multiply_add(h[s], high.of, into[s].z, into[s].w);
          multiply_add(h[s + 1], high.of, into[s + 1].z, into[s + 1].w);
        }
        multiply_add(rest[0], state_low, first.x, first.y);
        multiply_add(rest[1], state_low, second.x, second.y);
        if (goes_on && HAS_LOW) {
          multiply_add(h[s], low.of, into[s].x, into[s].y);
          multiply_add(h[s + 1], low.of, into[s + 1].x, into[s + 1].y);
        }
        multiply_add(y[0], state_high, first.x, first.y);
        multiply_add(y[1], state_high, second.x, second.y);
        if (goes_on) {
          multiply_add(h[s], high.of, into[s].x, into[s].y);
          multiply_add(h[s + 1], high.of, into[s + 1].x, into[s + 1].y);
        }
      }
      Words first, second;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        first.of[i] = __float_as_uint(y[i / 2][i % 2 * 2] + rest[i / 2][i % 2 * 2]);
        second.of[i] = __float_as_uint(y[i / 2][i % 2 * 2 + 1] + rest[i / 2][i % 2 * 2 + 1]);
      }
      chunks[sub].high[lane] = first;
      chunks[sub].low[lane] = second;
    };
#pragma unroll 1
    for (int sub = 0; sub + 1 < SUBS; ++sub) write_chunk(sub, true);
    write_chunk(SUBS - 1, false);
#endif
    __syncthreads();

#if !SUMMARY
#pragma unroll
    for (int sub = 0; sub < SUBS; ++sub) {
      Quad values[2];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const Chunk& chunk = memory.channels[4 * place.quad + c].chunks[sub];
        put(&values[0].of[c], __uint_as_float(chunk.high[place.lane()].of[place.word()]));
        put(&values[1].of[c], __uint_as_float(chunk.low[place.lane()].of[place.word()]));
      }
      output.store(sub * STEPS, values[0]);
      output.store(sub * STEPS + 1, values[1]);
    }
    output.next_tile();
#endif
  }
#if SUMMARY
  float2* final = x.final + state_row * STATES;
#elif FINAL && REVERSE
  if (segment < x.num_segments - 1) return;
  float2* final = x.final + (b * x.channels + table) * STATES;
#endif
#if SUMMARY || (FINAL && REVERSE)
  for (int n = lane; n < STATES; n += 32)
    if (exists) final[n] = memory.carry[warp][n];
#endif
}
