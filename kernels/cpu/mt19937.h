// The Mersenne Twister of Matsumoto and Nishimura (1998) with 32 bits, seeded as numpy seeds it.
#pragma once

#include <stdint.h>

namespace sprfast {

class MersenneTwister {
public:
    // As numpy.random.RandomState(seed): the recurrence of the authors' init_genrand.
    static MersenneTwister of_seed(uint32_t seed) {
        MersenneTwister result;
        result.state_[0] = seed;
        for (uint32_t i = 1; i < LENGTH; i++) {
            uint32_t before = result.state_[i - 1];
            result.state_[i] = 1812433253u * (before ^ before >> 30) + i;
        }
        result.next_ = LENGTH;
        return result;
    }

    // As numpy.random.MT19937(numpy.random.SeedSequence([a, b, c])).
    static MersenneTwister of_sequence(uint32_t a, uint32_t b, uint32_t c) {
        // O'Neill's seed_seq_fe with a pool of four words: each word is hashed, then mixed into every other one.
        uint32_t pool[4] = {a, b, c, 0};
        uint32_t factor = 0x43b0d7e5u;
        for (uint32_t& word : pool) word = hashed(word, factor, 0x931e8875u);
        for (int from = 0; from < 4; from++)
            for (int to = 0; to < 4; to++)
                if (from != to) {
                    uint32_t mixed = 0xca01f9ddu * pool[to] - 0x4973f715u * hashed(pool[from], factor, 0x931e8875u);
                    pool[to] = mixed ^ mixed >> 16;
                }
        MersenneTwister result;
        factor = 0x8b51f9ddu;
        for (int i = 0; i < LENGTH; i++) result.state_[i] = hashed(pool[i % 4], factor, 0x58f38dedu);
        result.state_[0] = 0x80000000u;  // never all zero
        result.next_ = LENGTH - 1;  // numpy leaves it there, so that the last word of the seed is the first one out
        return result;
    }

    // 53 random bits in [0, 1).
    double uniform() {
        uint32_t high = word() >> 5, low = word() >> 6;
        return (high * 67108864.0 + low) / 9007199254740992.0;
    }

private:
    static constexpr int LENGTH = 624, SHIFT = 397;

    static uint32_t hashed(uint32_t word, uint32_t& factor, uint32_t step) {
        word ^= factor;
        factor *= step;
        word *= factor;
        return word ^ word >> 16;
    }

    uint32_t word() {
        if (next_ == LENGTH) renew();
        uint32_t y = state_[next_++];
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c5680u;
        y ^= y << 15 & 0xefc60000u;
        return y ^ y >> 18;
    }

    void renew() {
        for (int i = 0; i < LENGTH; i++) {
            uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % LENGTH] & 0x7fffffffu);
            state_[i] = state_[(i + SHIFT) % LENGTH] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0u);
        }
        next_ = 0;
    }

    uint32_t state_[LENGTH];
    int next_;
};

}  // namespace sprfast
