// What interface.h offers to the Python package.
#include "interface.h"

#include <stdio.h>

#include <map>
#include <new>
#include <string>

#include "dispatch.h"
#include "failure.h"
#include "network.h"
#include "threads.h"

namespace sprfast {

namespace {

int32_t told(char* error, Code code, const char* text) {
    snprintf(error, SPR_ERROR_SIZE, "%s", text);
    return (int32_t)code;
}

// 0, or the code of what `run` throws.
template <class Function> int32_t guarded(char* error, const Function& run) {
    try {
        run();
        return 0;
    } catch (const Failure& failure) {
        return told(error, failure.code, failure.text.c_str());
    } catch (const std::bad_alloc&) {
        return told(error, Code::out_of_memory, "there is not enough memory");
    }
}

const spr_threads* open_threads(int32_t count) {
    const spr_threads* made = nullptr;
    char error[SPR_ERROR_SIZE];
    guarded(error, [&] { made = &(new Pool(count))->threads(); });
    return made;
}
void close_threads(const spr_threads* threads) { delete static_cast<Pool*>(threads->pool); }

void* open_network(const spr_operators* operators, int32_t base_width, int32_t draws, int32_t window, int32_t count,
                   const char* const* names, const float* const* arrays, char* error) {
    Network* made = nullptr;
    guarded(error, [&] {
        std::map<std::string, const float*> named;
        for (int i = 0; i < count; i++) named[names[i]] = arrays[i];
        made = new Network(base_width, draws, window, named, operators);
    });
    return made;
}
void close_network(void* network) { delete static_cast<Network*>(network); }

int32_t maps(const void* network, const float* x, int32_t images, int32_t height, int32_t width, const float* noise,
             float* errors, float* maps, int32_t threads, void (*observe)(const spr_layer*), char* error) {
    return guarded(error, [&] {
        static_cast<const Network*>(network)->maps(x, images, height, width, noise, errors, maps, threads, observe);
    });
}

}  // namespace

}  // namespace sprfast

extern "C" const struct spr_interface spr_interface = {
    SPR_INTERFACE_VERSION,  sprfast::operators_for, sprfast::amx_missing,   sprfast::open_threads,
    sprfast::close_threads, sprfast::open_network,  sprfast::close_network, sprfast::maps,
};
