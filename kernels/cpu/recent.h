// Values that calls keep asking for, such as those of the size of a camera's frames.
#pragma once

#include <stddef.h>

#include <list>
#include <memory>
#include <utility>

#include "per_process.h"

namespace sprfast {

// The values of the pairs that were asked for last; threads share them.
template <typename Value> class Recent {
public:
    explicit Recent(size_t kept) : kept_(kept) {}

    // The value of `key`: make(), where it is not kept.
    template <typename Make> std::shared_ptr<const Value> get(std::pair<int, int> key, const Make& make) {
        const auto found = entries_.locked([&](Entries& entries) -> std::shared_ptr<const Value> {
            for (auto at = entries.begin(); at != entries.end(); ++at)
                if (at->first == key) {
                    entries.splice(entries.begin(), entries, at);
                    return at->second;
                }
            return nullptr;
        });
        if (found) return found;
        const auto made = std::make_shared<const Value>(make());
        entries_.locked([&](Entries& entries) {
            entries.emplace_front(key, made);
            if (entries.size() > kept_) entries.pop_back();
        });
        return made;
    }

private:
    using Entries = std::list<std::pair<std::pair<int, int>, std::shared_ptr<const Value>>>;  // last one used in front

    const size_t kept_;
    PerProcess<Entries> entries_;
};

}  // namespace sprfast
