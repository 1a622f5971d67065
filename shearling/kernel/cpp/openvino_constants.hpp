// Layers of an IR that are constants once it is read; shearling/kernel/packed_format.py specifies them.
#pragma once

#include <openvino/core/extension.hpp>
#include <vector>

namespace shearling {

std::vector<ov::Extension::Ptr> constant_extensions();

}  // namespace shearling
