// expect: sluice: residual takes a streaming_layer; see core/layer.hpp
#include <sluice/layers/compose.hpp>
#include <sluice/layers/moe.hpp>
#include <sluice/layers/soft_moe.hpp>

#ifdef CONTROL
template class sluice::residual<sluice::moe<float>>;
#else
template class sluice::residual<sluice::soft_moe<float>>;
#endif
