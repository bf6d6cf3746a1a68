# The vector backends: every *.lanes.c once per instruction set. They join the
# library as objects, and only backend.c chooses among them at run time, so
# no other file may be compiled with these flags.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  file(GLOB lanes CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/cpu/*.lanes.c)
  set(FLAGS_avx2 -DLANES_AVX2 -mavx2 -mfma -mf16c)
  set(FLAGS_avx512 -DLANES_AVX512 -mavx2 -mfma -mavx512f -mavx512bw -mavx512vl
    -mavx512dq)
  # The register tiles are unrolled by the hundred, and gcc needs minutes to
  # instrument them. Their bounds are held by tests whose buffers end at a
  # guard page; TSan still sees them.
  if(GODWIT_SANITIZE MATCHES "address|undefined")
    set_source_files_properties(
      ${PROJECT_SOURCE_DIR}/kernels/cpu/tile.lanes.c
      ${PROJECT_SOURCE_DIR}/kernels/cpu/panel.lanes.c
      ${PROJECT_SOURCE_DIR}/kernels/cpu/bf16_tile.lanes.c
      PROPERTIES COMPILE_OPTIONS -fno-sanitize=all)
  endif()
  # Those that gain by avx512-bf16 a third time.
  set(FLAGS_avx512_bf16 ${FLAGS_avx512} -DLANES_BF16 -mavx512bf16)
  set(lanes_bf16 ${lanes})
  list(FILTER lanes_bf16 INCLUDE REGEX "bf16\\.lanes\\.c$|bf16_tile\\.lanes\\.c$")
  foreach(isa avx2 avx512 avx512_bf16)
    if(isa STREQUAL "avx512_bf16")
      set(lanes ${lanes_bf16})
    endif()
    add_library(kernels_${isa} OBJECT ${lanes})
    target_include_directories(kernels_${isa} PRIVATE ${PROJECT_SOURCE_DIR})
    target_compile_options(kernels_${isa} PRIVATE ${STRICT} -O3 ${FLAGS_${isa}})
    target_sources(kernels PRIVATE $<TARGET_OBJECTS:kernels_${isa}>)
  endforeach()
  # Once more for AVX-512 that rounds to bf16 by instruction.
  add_library(kernels_avx512_bf16 OBJECT
    ${PROJECT_SOURCE_DIR}/kernels/cpu/delta_one.lanes.c
    ${PROJECT_SOURCE_DIR}/kernels/cpu/delta_part.lanes.c
    ${PROJECT_SOURCE_DIR}/kernels/cpu/delta_rounded.lanes.c)
  target_include_directories(kernels_avx512_bf16 PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_options(kernels_avx512_bf16 PRIVATE ${STRICT} -O3
    ${FLAGS_avx512} -DLANES_BF16 -mavx512bf16)
  target_sources(kernels PRIVATE $<TARGET_OBJECTS:kernels_avx512_bf16>)
  # The sources of a backend that adds to avx512 are each compiled once.
  set(FLAGS_512 -O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mfma)
  if(GODWIT_SANITIZE MATCHES "address|undefined")
    list(APPEND FLAGS_512 -fno-sanitize=all)
  endif()
  set_source_files_properties(${PROJECT_SOURCE_DIR}/kernels/cpu/linear_bf16.c
    PROPERTIES COMPILE_OPTIONS "${FLAGS_512}")
  set_source_files_properties(${PROJECT_SOURCE_DIR}/kernels/cpu/linear_amx.c
    ${PROJECT_SOURCE_DIR}/kernels/cpu/bf16_tile_amx.c
    PROPERTIES COMPILE_OPTIONS "${FLAGS_512};-mamx-tile;-mamx-bf16")
  target_compile_definitions(kernels PRIVATE GODWIT_LANES)
endif()
