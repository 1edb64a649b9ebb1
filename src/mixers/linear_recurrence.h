// The linear recurrences as functions of tensors; formulas in linear_recurrence.cc.
#pragma once

#include "kernels/kernels.h"

namespace lineal {

/// The definition: one token after another. The caller scales q and normalises k.
kernels::RecurrenceOutput linear_recurrence_reference(const kernels::RecurrenceInput& in);

/// The same numbers, chunk_size tokens at once. Decays per channel need B T H chunk_size K numbers of memory.
kernels::RecurrenceOutput linear_recurrence_chunked(const kernels::RecurrenceInput& in, int64_t chunk_size);

/// `kernels::delta_rule` with a beta, else `kernels::linear_attention`, beside the chunked form.
kernels::RecurrenceOutput linear_recurrence(const kernels::RecurrenceInput& in, int64_t chunk_size);

}  // namespace lineal
