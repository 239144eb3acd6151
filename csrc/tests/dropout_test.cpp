// dropout against its definition: equal bit for bit.
#include "kernels/dropout/params.h"
#include "tests/case.h"
#include "tests/dropout_reference.h"

namespace recgrela::tests {
namespace {

void check(DType type, int64_t numel, double rate) {
  const Lengths seed = {1234567890123456789 - numel};
  const Integers seeds(seed, true);
  Tensor x(type, 1, numel), rounded(type, 1, numel);
  const Tensor y(type, 1, numel);
  const Doubles values = random_numbers(type, numel, 1, 1);
  x.set(values);
  cuda::DropoutParams p;
  p.dtype = type, p.numel = numel, p.x = x.data(), p.y = y.data();
  const DropoutReference reference(rate, seed[0]);
  p.dropout = reference.params(reinterpret_cast<const int64_t*>(seeds.memory.data));
  expect_success(cuda::dropout(p, nullptr));
  Doubles want(numel);
  for (int64_t i = 0; i < numel; ++i) want[i] = static_cast<float>(values[i]) * static_cast<float>(reference.factor(i));
  rounded.set(want);
  expect_close("y", y.values(), rounded.values(), 0);
}

void add_cases(Cases& cases) {
  for (DType type : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
    for (int64_t numel : {0, 1, 7, 8, 2047, 2049, 20011})
      for (double rate : {0.1, 0.75})
        cases.add(std::string("dropout/") + name_of(type) + "/n=" + std::to_string(numel) +
                      "/rate=" + std::to_string(rate).substr(0, 4),
                  [=] { check(type, numel, rate); });
}

const Registration registration(7, add_cases);

}  // namespace
}  // namespace recgrela::tests
