// Names of results, there before any library is loaded: an error about a library that cannot be opened still has to
// be readable.
#include <string>

#include "native/driver/cuda_driver.h"
#include "native/driver/nvml.h"

namespace baton {

std::string cuda::result_name(int32_t result) {
  switch (result) {
    case kSuccess:
      return "CUDA_SUCCESS";
#define BATON_CUDA_RESULT(constant, value, name, text) \
  case constant:                                       \
    return name;
#include "native/driver/cuda_results.inc"
#undef BATON_CUDA_RESULT
    default:
      return "CUDA_ERROR_" + std::to_string(result);
  }
}

std::string nvml::return_name(int32_t result) {
  switch (result) {
    case kSuccess:
      return "NVML_SUCCESS";
#define BATON_NVML_RETURN(constant, value, name, text) \
  case constant:                                       \
    return name;
#include "native/driver/nvml_results.inc"
#undef BATON_NVML_RETURN
    default:
      return "NVML_ERROR_" + std::to_string(result);
  }
}

}  // namespace baton
