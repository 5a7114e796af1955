// What the scan says in PTX rather than in C++: matrix products and barriers (after numbers.cuh).

// The part of x that survives as an operand of the tensor cores, which read 11 significant bits.
__device__ __forceinline__ float high_part(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }

// That truncation makes a factor smaller by this much on average (mantissas spread logarithmically).
constexpr float MEAN_TRUNCATION = 3.52e-4f;

// sums (16 x 8) += a (16 x 4) b (4 x 8). In lane l: a0 = a[l/4][l%4], a1 = a[8 + l/4][l%4], b = b[l%4][l/4],
// sums[i] = sums[8 (i/2) + l/4][2 (l%4) + i%2].
__device__ __forceinline__ void multiply_add(float (&sums)[4], float a0, float a1, float b) {
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(b)));
}

// sums (16 x 8) += a (16 x 8) b (8 x 8). In lane l: a00 = a[l/4][l%4], a10 = a[8 + l/4][l%4], a01 and a11 four columns on,
// b0 = b[l%4][l/4], b1 = b[4 + l%4][l/4], sums as above.
__device__ __forceinline__ void multiply_add(float (&sums)[4], float a00, float a10, float a01, float a11, float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(__float_as_uint(a00)), "r"(__float_as_uint(a10)), "r"(__float_as_uint(a01)), "r"(__float_as_uint(a11)),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// A barrier in shared memory that opens anew, phase by phase, each time that one thread has arrived. What was written
// before the arrival is seen after the wait.
struct PhaseBarrier {
  unsigned long long state;
};

__device__ __forceinline__ unsigned shared_address(const PhaseBarrier& barrier) {
  return (unsigned)__cvta_generic_to_shared(&barrier);
}
__device__ __forceinline__ void start(PhaseBarrier& barrier) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void arrive(PhaseBarrier& barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void wait(PhaseBarrier& barrier, int phase) {
  unsigned is_open;
  do {
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred open; mbarrier.try_wait.parity.shared.b64 open, [%1], %2; selp.u32 %0, 1, 0, open; }"
#else
    asm volatile("{ .reg .pred open; mbarrier.test_wait.parity.shared.b64 open, [%1], %2; selp.u32 %0, 1, 0, open; }"
#endif
                 : "=r"(is_open)
                 : "r"(shared_address(barrier)), "r"(phase & 1)
                 : "memory");
  } while (!is_open);
}

// from + count * stride, in one instruction. (As one instruction of PTX it becomes three.)
__device__ __forceinline__ char* multiply_add_wide(const char* from, unsigned count, unsigned stride) {
  char* to;
  asm("{ .reg .u64 product; mul.wide.u32 product, %1, %2; add.u64 %0, product, %3; }"
      : "=l"(to)
      : "r"(count), "r"(stride), "l"(from));
  __builtin_assume(__isGlobal(to));
  return to;
}

// One thread arrives and says how many bytes must arrive as well before the barrier opens.
__device__ __forceinline__ void arrive_expecting(PhaseBarrier& barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Writes to the same place in the shared memory of a block of the cluster, where the bytes arrive at a barrier.
template <int COUNT>
__device__ __forceinline__ void send(const float (&values)[COUNT], float (&to)[COUNT], PhaseBarrier& arrived, int rank) {
  unsigned there, barrier;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"((unsigned)__cvta_generic_to_shared(to)), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(barrier) : "r"(shared_address(arrived)), "r"(rank));
  if constexpr (COUNT == 4) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(there),
        "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3]), "r"(barrier)
        : "memory");
  } else if constexpr (COUNT == 2) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(there),
                 "f"(values[0]), "f"(values[1]), "r"(barrier)
                 : "memory");
  } else {
    static_assert(COUNT == 1);
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(there),
                 "f"(values[0]), "r"(barrier)
                 : "memory");
  }
}

// The same place in the shared memory of a block of the cluster.
__device__ __forceinline__ const void* in_block_of_cluster(const void* here, int rank) {
  const void* there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(here), "r"(rank));
  return there;
}

// All threads of the cluster; what was written before, barriers that were started too, is seen by all after.
__device__ __forceinline__ void synchronize_cluster() {
  asm volatile(
      "fence.mbarrier_init.release.cluster;\nbarrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::
          : "memory");
}

// A barrier of some of the block's warps; 0 is that of __syncthreads.
__device__ __forceinline__ void synchronize_warps(int barrier, int num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(num_threads) : "memory");
}

// The same, for those that do not wait: it opens when num_threads have come, of which these go on at once.
__device__ __forceinline__ void arrive_at_barrier(int barrier, int num_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(num_threads) : "memory");
}
