// The state space of one channel, from its parameters, in float64.

struct Complex { double re, im; };
__device__ __forceinline__ Complex operator*(Complex a, Complex b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
__device__ __forceinline__ Complex operator*(double a, Complex b) { return {a * b.re, a * b.im}; }
__device__ __forceinline__ Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
__device__ __forceinline__ Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
__device__ __forceinline__ Complex operator/(Complex a, Complex b) {
  const double size = b.re * b.re + b.im * b.im;
  return {(a.re * b.re + a.im * b.im) / size, (a.im * b.re - a.re * b.im) / size};
}
__device__ __forceinline__ float2 narrow(Complex a) { return make_float2((float)a.re, (float)a.im); }

__device__ __forceinline__ Complex exponential(Complex x) {
  constexpr double PER_PI = 0.31830988618379067;
  double sine, cosine;
  // Of multiples of pi, because the reduction of other angles goes through memory.
  sincospi(PER_PI * x.im, &sine, &cosine);
  const double size = exp(x.re);
  return {size * cosine, size * sine};
}

struct ComplexParameter { REAL re, im; };

struct Parameters {
  const REAL* delta;               // (channels)
  const ComplexParameter *A, *C;   // (channels, state)
  const ComplexParameter* B;       // the same, or none: one
  long long channels, state;
};

// h_t = a h_{t-1} + into u_t, y_t = Re <out, h_t>, with a = exp(rate): zero-order hold. All zero where there is no state.
struct Discrete { Complex A, B, rate, a, into, out; };

__device__ __forceinline__ Discrete discretize(const Parameters& x, long long channel, long long n) {
  Discrete state = {};
  if (channel >= x.channels || n >= x.state) return state;
  const long long at = channel * x.state + n;
  const ComplexParameter A = x.A[at], C = x.C[at];
  state.A = {(double)A.re, (double)A.im};
  state.B = {1., 0.};
  if (x.B != nullptr) state.B = {(double)x.B[at].re, (double)x.B[at].im};
  state.rate = (double)x.delta[channel] * state.A;
  state.a = exponential(state.rate);
  state.into = state.B * ((state.a - Complex{1., 0.}) / state.A);
  state.out = {2. * C.re, 2. * C.im};
  return state;
}
