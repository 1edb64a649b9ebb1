// The parts of lineal bench, each with flags of its own: bench op, bench model.
#pragma once

#include "commands/command.h"

namespace lineal {

extern const CommandSpec bench_op_spec, bench_model_spec, bench_decode_spec, bench_machine_spec,
    bench_approximation_spec, bench_propagation_spec;

}  // namespace lineal
