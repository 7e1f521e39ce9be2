// The one place that includes napi.h; its settings are in CMakeLists.txt.
#pragma once

#include <napi.h>

static_assert(NAPI_VERSION == 8, "prebuilds load in every Node.js with Node-API 8");
