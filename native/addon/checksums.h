// Checksums that the controller needs for itself.
#pragma once

#include "native/addon/napi_setup.h"

namespace baton::addon {

// indexChecksums(counts: BigUint64Array): Promise<BigUint64Array>
Napi::Value index_checksums(const Napi::CallbackInfo& info);

}  // namespace baton::addon
