/* The tables of fp8.h. */
#include "fp8.h"

#include <math.h>

uint8_t fp8_high_bytes[128], fp8_low_bytes[128];

void fp8_init(void) {
    for (int code = 0; code < 128; code++) {
        const int exponent = code >> 3, mantissa = code & 7;
        float value = exponent ? ldexpf(8 + mantissa, exponent - 10) : ldexpf(mantissa, -9);
        if (code == 127) value = NAN;
        uint32_t bits;
        memcpy(&bits, &value, 4);
        fp8_high_bytes[code] = (uint8_t)(bits >> 24);
        fp8_low_bytes[code] = (uint8_t)(bits >> 16);
    }
}
