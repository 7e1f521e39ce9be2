#include "native/addon/checksums.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "native/addon/arguments.h"
#include "native/addon/errors.h"
#include "native/addon/task.h"
#include "native/copy/checksum.h"

namespace baton::addon {
namespace {

using Sums = std::vector<uint64_t>;

// One pass for all counts: what was summed for a smaller one is part of the larger.
Result<Sums> sums_of(const std::vector<uint64_t>& counts) {
  std::vector<size_t> order(counts.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, {}, [&](size_t at) { return counts[at]; });
  Sums sums(counts.size());
  uint64_t sum = 0;
  uint64_t index = 0;
  for (const size_t at : order) {
    for (; index < counts[at]; ++index)
      sum += copy::element_hash(index, 0);
    sums[at] = sum;
  }
  return sums;
}

Napi::Value to_array(Napi::Env env, const Sums& sums) {
  Napi::BigUint64Array array = Napi::BigUint64Array::New(env, sums.size());
  std::ranges::copy(sums, array.Data());
  return array;
}

}  // namespace

Napi::Value index_checksums(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsTypedArray() || info[0].As<Napi::TypedArray>().TypedArrayType() != napi_biguint64_array) {
    throw to_javascript(env, bad_argument("counts", "a BigUint64Array", describe(info[0])));
  }
  const auto given = info[0].As<Napi::BigUint64Array>();
  const std::vector<uint64_t> counts(given.Data(), given.Data() + given.ElementLength());
  return Task<Sums>::start(env, [counts] { return sums_of(counts); }, to_array);
}

}  // namespace baton::addon
