# The scheduler's pure parts on a made-up machine and a clock that jumps:
# tests/sim/sim.c. The traces are `sim make SCENARIO 1`.
if(TARGET scheduler)
  file(GLOB sim_files CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.c)
  add_executable(sim ${sim_files})
  target_link_libraries(sim PRIVATE scheduler)
  target_compile_options(sim PRIVATE ${STRICT})
  file(GLOB sim_traces CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.tsv)
  foreach(file IN LISTS sim_traces)
    get_filename_component(stem ${file} NAME_WE)
    add_test(NAME sim.${stem} COMMAND sim check ${file})
    set_tests_properties(sim.${stem} PROPERTIES LABELS sim TIMEOUT 480
      ENVIRONMENT "${SANITIZER_ENVIRONMENT}")
  endforeach()
endif()
