// What an export says beside its arrays.
#pragma once

#include "export_file.h"
#include "json.h"

namespace sprfast {

// Everything of an export but `arrays`, from the document in its canonical manifest. Throws Failure, whose text names
// the field that is missing or not allowed.
Export read_metadata(const json::Value& document);

}  // namespace sprfast
