# The backend of a GPU, a library that is loaded at run time: kernels/device.h.
# Its sources are compiled by commands of their own, since nothing of how the C
# ones are compiled holds for them.
set(GODWIT_CUDA AUTO CACHE STRING "libgodwit_cuda.so: AUTO if nvcc is there, ON, OFF")
find_program(GODWIT_NVCC nvcc HINTS /usr/local/cuda/bin)
mark_as_advanced(GODWIT_NVCC)
if(GODWIT_CUDA STREQUAL "ON" AND NOT GODWIT_NVCC)
  message(FATAL_ERROR "GODWIT_CUDA is ON, but there is no nvcc")
endif()
if(GODWIT_NVCC AND (GODWIT_CUDA STREQUAL "ON" OR
                    (GODWIT_CUDA STREQUAL "AUTO" AND NOT GODWIT_SANITIZE)))
  file(GLOB cuda CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/cuda/*.cu)
  # fma is written out here, too. The macro leaves out what <cmath> has of special
  # functions, which nobody calls: a third of what there is to read for each file.
  set(NVCC ${GODWIT_NVCC} -std=c++17 -O3 -fmad=false -lineinfo
    -D_GLIBCXX_BITS_SPECFUN_H
    -Xcompiler=-fPIC,-fvisibility=hidden -I${PROJECT_SOURCE_DIR})
  # The two ways of kernels/cuda/capability.h, and whose kernels are of one alone;
  # those of all other files are compiled for both.
  set(SM90 -gencode=arch=compute_90a,code=sm_90a)
  set(SM80 -gencode=arch=compute_80,code=[sm_80,compute_80])
  set(SM90_ALONE attend_few attend_list attend_many attend_rotate linear_f8
    linear_launch)
  set(SM80_ALONE attend_sm80 linear_sm80)
  function(add_cuda_object folder file) # flags behind them
    get_filename_component(stem ${file} NAME_WE)
    set(object ${PROJECT_BINARY_DIR}/${folder}/${stem}.o)
    add_custom_command(OUTPUT ${object}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${PROJECT_BINARY_DIR}/${folder}
      COMMAND ${NVCC} ${ARGN} -MD -MF ${object}.d -c ${file} -o ${object}
      DEPENDS ${file} DEPFILE ${object}.d COMMENT "Building ${stem}.cu" VERBATIM)
  endfunction()
  function(add_cuda_library path) # objects behind it
    get_filename_component(name ${path} NAME)
    add_custom_command(OUTPUT ${path}
      COMMAND ${NVCC} -shared -Xlinker=-z,defs -o ${path} ${ARGN}
      DEPENDS ${ARGN} COMMENT "Linking ${name}" VERBATIM)
  endfunction()
  # CUDA's headers are most of what a small file takes, so some are compiled at
  # once. Their macros and static functions must not meet; files of a unit are
  # complete each, as tests/gpu/build.sh has them.
  set(UNITS device layers rows views)
  set(UNIT_device device step)
  set(UNIT_layers conv_plain delta delta_gate delta_plain delta_sm80 linear
    linear_expert linear_fast linear_plain tensor_map)
  set(UNIT_rows attend route rows state_cap view_prepare)
  set(UNIT_views attend_wide linear_round view view_mass)
  foreach(unit IN LISTS UNITS)
    set(text)
    foreach(stem IN LISTS UNIT_${unit})
      list(REMOVE_ITEM cuda ${PROJECT_SOURCE_DIR}/kernels/cuda/${stem}.cu)
      string(APPEND text "#include \"kernels/cuda/${stem}.cu\"\n")
    endforeach()
    file(CONFIGURE OUTPUT units/unit_${unit}.cu CONTENT "${text}" @ONLY)
    list(APPEND cuda ${PROJECT_BINARY_DIR}/units/unit_${unit}.cu)
  endforeach()
  set(objects)
  set(sm80_objects) # of a library that goes the other way on every GPU
  foreach(file IN LISTS cuda)
    get_filename_component(stem ${file} NAME_WE)
    set(object ${PROJECT_BINARY_DIR}/cuda/${stem}.o)
    set(sm80_object ${object})
    if(stem IN_LIST SM90_ALONE)
      add_cuda_object(cuda ${file} ${SM90})
    elseif(stem IN_LIST SM80_ALONE)
      add_cuda_object(cuda ${file} ${SM80})
    else()
      add_cuda_object(cuda ${file} ${SM90} ${SM80})
      set(sm80_object ${PROJECT_BINARY_DIR}/cuda_sm80/${stem}.o)
      add_cuda_object(cuda_sm80 ${file} ${SM80} -DWAY_SM80_ALONE)
    endif()
    list(APPEND objects ${object})
    list(APPEND sm80_objects ${sm80_object})
  endforeach()
  set(library ${PROJECT_BINARY_DIR}/libgodwit_cuda.so)
  add_cuda_library(${library} ${objects})
  add_custom_target(godwit_cuda ALL DEPENDS ${library})
endif()

# To instrument the sets with AVX-512 takes minutes, and a sanitizer sees only
# what is run: AUTO leaves them out of its build where the machine has none.
set(GODWIT_AVX512 AUTO CACHE STRING "Sets with AVX-512: AUTO, ON, OFF")
set(has_avx512 ON)
if(GODWIT_AVX512 STREQUAL "OFF")
  set(has_avx512 OFF)
elseif(GODWIT_AVX512 STREQUAL "AUTO" AND GODWIT_SANITIZE)
  file(STRINGS /proc/cpuinfo cpu REGEX "^flags" LIMIT_COUNT 1)
  foreach(flag avx512f avx512bw avx512vl avx512dq)
    if(NOT "${cpu} " MATCHES " ${flag} ")
      set(has_avx512 OFF)
    endif()
  endforeach()
endif()

# The reference is most of the time of many tests: -O3 makes one loop over a
# panel's outputs a few instructions. A sanitizer leaves products and attention
# alone, which go element by element: operands end at a guard page there, too,
# and what they have on the stack is sized by what they assert.
set(ref_products ${PROJECT_SOURCE_DIR}/kernels/ref/linear.c
  ${PROJECT_SOURCE_DIR}/kernels/ref/attend.c)
set_source_files_properties(${PROJECT_SOURCE_DIR}/kernels/ref/delta.c
  ${PROJECT_SOURCE_DIR}/kernels/ref/delta_rounded.c ${ref_products}
  PROPERTIES COMPILE_OPTIONS -O3)
if(GODWIT_SANITIZE MATCHES "address|undefined")
  set_source_files_properties(${ref_products}
    PROPERTIES COMPILE_OPTIONS "-O3;-fno-sanitize=all")
endif()

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
  # A third of the time that -O3 takes, and their tests run as fast.
  if(GODWIT_SANITIZE)
    set_source_files_properties(
      ${PROJECT_SOURCE_DIR}/kernels/cpu/delta_one.lanes.c
      ${PROJECT_SOURCE_DIR}/kernels/cpu/delta_rounded.lanes.c
      PROPERTIES COMPILE_OPTIONS -O1)
  endif()
  # Where registers are 16, products of packed weights are made another way.
  set(lanes_avx512 ${lanes})
  set(lanes_avx2 ${lanes})
  list(REMOVE_ITEM lanes_avx2 ${PROJECT_SOURCE_DIR}/kernels/cpu/panel.lanes.c)
  set(panel_avx2 ${PROJECT_SOURCE_DIR}/kernels/cpu/panel_avx2.c)
  set_source_files_properties(${panel_avx2}
    PROPERTIES COMPILE_OPTIONS "-O3;${FLAGS_avx2}")
  if(GODWIT_SANITIZE MATCHES "address|undefined")
    set_source_files_properties(${panel_avx2}
      PROPERTIES COMPILE_OPTIONS "-O3;${FLAGS_avx2};-fno-sanitize=all")
  endif()
  set(sets avx2)
  if(has_avx512)
    list(APPEND sets avx512)
  endif()
  foreach(isa IN LISTS sets)
    add_library(kernels_${isa} OBJECT ${lanes_${isa}})
    target_compile_options(kernels_${isa} PRIVATE ${FLAGS_${isa}})
  endforeach()
  # Those that gain by it once more for AVX-512 with bf16 instructions.
  set(bf16 attend_bf16 bf16_tile delta_one delta_part delta_rounded swiglu)
  list(TRANSFORM bf16 REPLACE
    "(.+)" "${PROJECT_SOURCE_DIR}/kernels/cpu/\\1.lanes.c")
  if(has_avx512)
    add_library(kernels_avx512_bf16 OBJECT ${bf16})
    target_compile_options(kernels_avx512_bf16 PRIVATE
      ${FLAGS_avx512} -DLANES_BF16 -mavx512bf16)
    list(APPEND sets avx512_bf16)
  endif()
  foreach(isa IN LISTS sets)
    target_include_directories(kernels_${isa} PRIVATE ${PROJECT_SOURCE_DIR})
    target_compile_options(kernels_${isa} PRIVATE ${STRICT} -O3)
    target_sources(kernels PRIVATE $<TARGET_OBJECTS:kernels_${isa}>)
  endforeach()
  # The sources of a backend that adds to avx512 are each compiled once.
  set(FLAGS_512 -O3 ${FLAGS_avx512} -mavx512vnni)
  if(GODWIT_SANITIZE MATCHES "address|undefined")
    list(APPEND FLAGS_512 -fno-sanitize=all)
  endif()
  set(vnni_once ${PROJECT_SOURCE_DIR}/kernels/cpu/linear_vnni.c)
  set(bf16_once ${PROJECT_SOURCE_DIR}/kernels/cpu/linear_bf16.c)
  set(amx_once linear_amx linear_amx_w8 linear_amx_w8a8 amx bf16_tile_amx)
  list(TRANSFORM amx_once REPLACE
    "(.+)" "${PROJECT_SOURCE_DIR}/kernels/cpu/\\1.c")
  set(FLAGS_bf16 -mavx512bf16 -mavx512vbmi)
  set_source_files_properties(${vnni_once}
    PROPERTIES COMPILE_OPTIONS "${FLAGS_512}")
  set_source_files_properties(${bf16_once}
    PROPERTIES COMPILE_OPTIONS "${FLAGS_512};${FLAGS_bf16}")
  set_source_files_properties(${amx_once} PROPERTIES COMPILE_OPTIONS
    "${FLAGS_512};${FLAGS_bf16};-mamx-tile;-mamx-bf16;-mamx-int8")
  target_compile_definitions(kernels PRIVATE GODWIT_LANES)
  if(has_avx512)
    target_compile_definitions(kernels PRIVATE GODWIT_AVX512)
  else() # listed, not compiled
    set_source_files_properties(${vnni_once} ${bf16_once} ${amx_once}
      PROPERTIES HEADER_FILE_ONLY ON)
  endif()
endif()
