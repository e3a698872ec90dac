// Runs single operators of another processor for support/emulated_operators.py, which says on stdin what to run.
//
// A call is an operator's number, its integers, its structure with pointers as the caller has them, and the memory that
// they point to. Answered are the number that it returns and all memory.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <memory>
#include <vector>

#include "dispatch.h"
#include "threads.h"

namespace {

void receive(void* to, size_t size) {
    if (fread(to, 1, size, stdin) != size) exit(feof(stdin) ? 0 : 1);
}

int64_t number() {
    int64_t value;
    receive(&value, sizeof value);
    return value;
}

struct Memory {
    std::unique_ptr<char[]> bytes;
    int64_t size;
};

struct Call {
    std::vector<int64_t> integers;
    std::vector<char> structure;
    std::vector<std::pair<int64_t, Memory>> memory;  // by the caller's address
    std::map<int64_t, float*> here;

    Call() {
        integers.resize(number());
        for (int64_t& each : integers) each = number();
        structure.resize(number());
        receive(structure.data(), structure.size());
        for (int64_t left = number(); left > 0; left--) {
            const int64_t address = number(), size = number();
            Memory each{std::unique_ptr<char[]>(new char[size]), size};
            receive(each.bytes.get(), size);
            here[address] = (float*)each.bytes.get();
            memory.emplace_back(address, std::move(each));
        }
    }

    float* at(int index) const { return here.at(integers[index]); }

    // The structure at `offset`, its pointers those of this process.
    template <class Structure, class... Pointers> Structure structure_at(size_t offset, Pointers... pointers) const {
        Structure result;
        memcpy(&result, structure.data() + offset, sizeof result);
        ((result.*pointers = result.*pointers ? here.at((int64_t)(result.*pointers)) : nullptr), ...);
        return result;
    }

    spr_conv3x3 convolution() const {
        using C = spr_conv3x3;
        return structure_at<C>(0, &C::weight, &C::bias, &C::gamma, &C::beta);
    }

    spr_perturb_conv3x3 perturbation() const {
        using C = spr_perturb_conv3x3;
        return structure_at<C>(0, &C::image, &C::noise, &C::std, &C::weight, &C::bias, &C::gamma, &C::beta);
    }

    spr_head head() const {
        using H = spr_head;
        return structure_at<H>(0, &H::raw, &H::affine, &H::weight, &H::bias, &H::noise, &H::scale);
    }

    std::vector<spr_source> sources() const {
        using S = spr_source;
        std::vector<S> result;
        for (size_t at = sizeof(spr_conv3x3); at < structure.size(); at += sizeof(S))
            result.push_back(structure_at<S>(at, &S::raw, &S::affine, &S::embedding));
        return result;
    }
};

int64_t run(const spr_operators& o, int64_t which, const Call& c) {
    const std::vector<int64_t>& n = c.integers;
    const auto threads = [&] { return std::make_unique<sprfast::Pool>((int)n.back()); };
    const spr_conv3x3 convolution = which == 1 || which == 2 ? c.convolution() : spr_conv3x3{};
    const spr_perturb_conv3x3 perturbation = which == 3 || which == 4 ? c.perturbation() : spr_perturb_conv3x3{};
    switch (which) {
        case 0:
            o.pack_conv3x3(c.at(0), n[1], n[2], c.at(3));
            break;
        case 1:
            return o.conv3x3_space(&convolution, n[0]);
        case 2:
            o.conv3x3(&convolution, c.sources().data(), c.at(0), c.at(1), c.at(2), &threads()->threads());
            break;
        case 3:
            return o.perturb_conv3x3_space(&perturbation, n[0]);
        case 4:
            o.perturb_conv3x3(&perturbation, c.at(0), c.at(1), c.at(2), &threads()->threads());
            break;
        case 5: {
            const spr_head head = c.head();
            o.head(&head, c.at(0), &threads()->threads());
            break;
        }
        case 6:
            return o.anomaly_map_space(n[0], n[1], n[2], n[3]);
        case 7:
            o.anomaly_map(n[0], n[1], n[2], n[3], c.at(4), c.at(5), c.at(6), c.at(7), c.at(8), &threads()->threads());
            break;
        case 8:
            o.swish(c.at(0), c.at(1), n[2]);
            break;
        default:
            exit(1);
    }
    return 0;
}

}  // namespace

int main(int, char** arguments) {
    const spr_operators* operators = sprfast::operators_for(arguments[1]);
    if (!operators) return 1;
    for (;;) {
        const int64_t which = number();
        const Call call;
        const int64_t result = run(*operators, which, call);
        fwrite(&result, sizeof result, 1, stdout);
        for (const auto& [address, each] : call.memory) fwrite(each.bytes.get(), 1, each.size, stdout);
        fflush(stdout);
    }
}
